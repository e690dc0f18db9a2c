"""`flux2 keys`: make, list, change, rotate and revoke keys, for people who reach the service's Redis."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shared.key_options import (
    LIMIT_FIELDS,
    Adapters,
    Days,
    Engines,
    ItemsPerDay,
    MaxMegapixels,
    MaxSteps,
    MegapixelSteps,
    Models,
    QueuedItems,
    Roles,
    Unlimited,
)

if TYPE_CHECKING:
    from shared.keys.record import KeyLimits, KeyRecord, Role
    from shared.keys.secret import KeyText
    from shared.ledger import Ledger

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Make, change and revoke the keys that callers of the API send.",
)

_DAY_MS = 86_400_000
_HOUR_MS = 3_600_000
# Longer than that of the API: a person waits, once.
_TIMEOUT_S = 5.0

_Data = Annotated[Path | None, typer.Option(help="Folder of a `flux2 up` that runs: keys of that service.")]
_Json = Annotated[bool, typer.Option("--json", help="Print one JSON object per line.")]
_KeyId = Annotated[str, typer.Argument(metavar="ID", help="Id of a key, as `flux2 keys list` shows it.")]


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="Who or what will use the key, e.g. alice or nightly-renders.")],
    tenant: Annotated[
        str,
        typer.Option(help="Tenant whose jobs and uploads the key creates and sees. Those from before keys: default."),
    ] = "default",
    role: Roles = None,
    days: Days = None,
    queued_items: QueuedItems = None,
    items_per_day: ItemsPerDay = None,
    megapixel_steps_per_day: MegapixelSteps = None,
    max_megapixels: MaxMegapixels = None,
    max_steps: MaxSteps = None,
    model: Models = None,
    engine: Engines = None,
    adapter: Adapters = None,
    as_json: _Json = False,
    data: _Data = None,
) -> None:
    """Make a key and print it. It is shown once: Redis has only a hash of it."""
    from shared.keys.issue import issue_key
    from shared.keys.record import KeyLimits

    limits = KeyLimits(
        queued_items=queued_items,
        items_per_day=items_per_day,
        megapixel_steps_per_day=megapixel_steps_per_day,
        max_megapixels=max_megapixels,
        max_steps=max_steps,
        models=tuple(model or ()),
        engines=tuple(engine or ()),
        adapters=tuple(adapter or ()),
    )
    _check_names(name, tenant)
    _check_limits(limits)
    roles = _roles(role or ["submit", "read"])
    ledger = _open(data)
    text, record = issue_key(ledger, name=name, tenant=tenant, roles=roles, limits=limits, days=days)
    _print_secret(text, record, as_json=as_json, now_ms=record.created_ms)


@app.command("list")
def list_keys(as_json: _Json = False, data: _Data = None) -> None:
    """List the keys, also those that were revoked or have expired."""
    from shared.console import LineConsole

    ledger = _open(data)
    records, now_ms = ledger.api_keys.all(), ledger.now_ms()
    if as_json:
        for record in records:
            typer.echo(json.dumps(record.public(now_ms=now_ms)))
        return
    if not records:
        LineConsole().print_line("no keys; make one with: flux2 keys create NAME --tenant TENANT")
        return
    LineConsole().print_rows(
        [("id", "name", "tenant", "roles", "state", "last used"), *(_row(record, now_ms) for record in records)]
    )


@app.command()
def revoke(key_id: _KeyId, data: _Data = None) -> None:
    """Revoke a key for good. Every API process refuses it within three seconds; its jobs go on."""
    if not _open(data).api_keys.revoke(key_id):
        raise _unknown(key_id)
    typer.echo(f"revoked {key_id}")


@app.command()
def update(
    key_id: _KeyId,
    role: Roles = None,
    days: Days = None,
    no_expiry: Annotated[bool, typer.Option("--no-expiry", help="Let the key expire no more.")] = False,
    queued_items: QueuedItems = None,
    items_per_day: ItemsPerDay = None,
    megapixel_steps_per_day: MegapixelSteps = None,
    max_megapixels: MaxMegapixels = None,
    max_steps: MaxSteps = None,
    model: Models = None,
    engine: Engines = None,
    adapter: Adapters = None,
    unlimited: Unlimited = None,
    as_json: _Json = False,
    data: _Data = None,
) -> None:
    """Change what a key allows; what no option names stays. Every API process follows within three seconds."""
    given = {
        "queued_items": queued_items,
        "items_per_day": items_per_day,
        "megapixel_steps_per_day": megapixel_steps_per_day,
        "max_megapixels": max_megapixels,
        "max_steps": max_steps,
        "models": tuple(model or ()),
        "engines": tuple(engine or ()),
        "adapters": tuple(adapter or ()),
    }
    changes = {field: value for field, value in given.items() if value}
    removed = _limit_fields(unlimited or [], changes)
    if days is not None and no_expiry:
        raise typer.BadParameter("give either --days or --no-expiry", param_hint="--no-expiry")
    if not (role or days or no_expiry or changes or removed):
        raise typer.BadParameter(
            "name what to change, e.g. --days 90 or --max-steps 30; see --help", param_hint="OPTIONS"
        )
    roles = _roles(role) if role else None
    ledger = _open(data)
    record, now_ms = ledger.api_keys.find(key_id), ledger.now_ms()
    if record is None:
        raise _unknown(key_id)
    limits = record.limits.changed(changes, removed=removed)
    _check_limits(limits)
    expires_ms = None if no_expiry else record.expires_ms if days is None else now_ms + round(days * _DAY_MS)
    updated = replace(record, roles=roles or record.roles, limits=limits, expires_ms=expires_ms)
    if updated.state(now_ms=now_ms) == "revoked":
        raise _revoked(key_id)
    ledger.api_keys.update(record, updated)
    if as_json:
        typer.echo(json.dumps(updated.public(now_ms=now_ms)))
        return
    typer.echo(f"updated {key_id}")
    if (state := updated.state(now_ms=now_ms)) != "active":
        typer.echo(f"The key is {state}: no API accepts it. Add --days.", err=True)


@app.command()
def rotate(
    key_id: _KeyId,
    keep_hours: Annotated[
        float, typer.Option(min=0, max=8760, help="Hours for which the present secret is still accepted.")
    ] = 0.0,
    as_json: _Json = False,
    data: _Data = None,
) -> None:
    """Give a key a new secret and print it. Its id, tenant, roles, expiry and what it used of its limits stay."""
    from shared.errors import KeyRefused
    from shared.keys.secret import KeyText, SecretHash

    ledger = _open(data)
    record, now_ms = ledger.api_keys.find(key_id), ledger.now_ms()
    if record is None:
        raise _unknown(key_id)
    state = record.state(now_ms=now_ms)
    if state == "revoked":
        raise _revoked(key_id)
    if state == "expired":
        raise KeyRefused(f"the key {key_id} is expired; `flux2 keys update {key_id} --days 90` gives it a new expiry")
    text = KeyText.make(key_id)
    until_ms = now_ms + round(keep_hours * _HOUR_MS)
    ledger.api_keys.rotate(record, SecretHash.of(text.secret), previous_until_ms=until_ms)
    _print_secret(text, record, as_json=as_json, now_ms=now_ms)


def _limit_fields(options: list[str], changes: Mapping[str, object]) -> list[str]:
    """Return the fields of the limits that `--unlimited` removes."""
    hint = "--unlimited"
    for option in options:
        if option not in LIMIT_FIELDS:
            raise typer.BadParameter(f"{option!r} is no limit; choose from {', '.join(LIMIT_FIELDS)}", param_hint=hint)
        if LIMIT_FIELDS[option] in changes:
            raise typer.BadParameter(f"--{option} sets that limit; give one of the two", param_hint=hint)
    return [LIMIT_FIELDS[option] for option in options]


def _roles(names: list[str]) -> frozenset[Role]:
    from shared.keys.record import ROLES

    known: dict[str, Role] = {role: role for role in ROLES}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise typer.BadParameter(f"{unknown[0]!r} is no role; choose from {', '.join(ROLES)}", param_hint="--role")
    return frozenset(known[name] for name in names)


def _check_names(name: str, tenant: str) -> None:
    from shared.keys.issue import check_key_name
    from shared.keys.record import TENANT

    try:
        check_key_name(name)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="NAME") from error
    if not TENANT.fullmatch(tenant):
        raise typer.BadParameter(
            f"{tenant!r} cannot be a tenant; use up to 64 letters, digits, '.', '_' and '-', and begin with a letter "
            "or a digit",
            param_hint="--tenant",
        )


def _check_limits(limits: KeyLimits) -> None:
    from shared.keys.issue import check_key_engines, check_key_models

    for option, values, check in (
        ("--model", limits.models, check_key_models),
        ("--engine", limits.engines, check_key_engines),
    ):
        try:
            check(values)
        except ValueError as error:
            raise typer.BadParameter(str(error), param_hint=option) from error


def _open(data: Path | None) -> Ledger:
    from shared.ledger import Ledger
    from shared.local.data_folder import read_settings
    from shared.settings import Settings

    settings = read_settings(data) if data else Settings()
    return Ledger.connect(settings.redis.url, settings.queue, timeout_s=_TIMEOUT_S)


def _unknown(key_id: str) -> Exception:
    from shared.errors import KeyRefused

    return KeyRefused(f"no key has the id {key_id!r}; `flux2 keys list` shows the ids")


def _revoked(key_id: str) -> Exception:
    from shared.errors import KeyRefused

    return KeyRefused(f"the key {key_id} is revoked for good; make a new one with `flux2 keys create`")


def _print_secret(text: KeyText, record: KeyRecord, *, as_json: bool, now_ms: int) -> None:
    if as_json:
        typer.echo(json.dumps({"key": str(text), **record.public(now_ms=now_ms)}))
        return
    typer.echo(str(text))
    # On stderr, so that KEY=$(flux2 keys create NAME) holds the key alone.
    typer.echo(
        f"This key of the tenant {record.tenant} is shown once. Keep it in FLUX2_API_KEY, or in a profile of the "
        "client. The API now answers only callers with a key.",
        err=True,
    )


def _row(record: KeyRecord, now_ms: int) -> tuple[str, ...]:
    roles = ",".join(sorted(record.roles))
    return record.key_id, record.name, record.tenant, roles, record.state(now_ms=now_ms), record.used_on or "never"
