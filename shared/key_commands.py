"""The commands `flux2 keys create`, `list`, `revoke` and `rotate`, for people who reach the service's Redis."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from shared.keys.record import KeyLimits, KeyRecord, Role
    from shared.keys.secret import KeyText
    from shared.ledger import Ledger

app = typer.Typer(
    no_args_is_help=True, pretty_exceptions_enable=False, help="Make and revoke the keys that callers of the API send."
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
    role: Annotated[
        list[str] | None,
        typer.Option(
            help="submit, read or admin; repeat it for several. Default: submit and read. admin sees the jobs of every "
            "tenant."
        ),
    ] = None,
    days: Annotated[float | None, typer.Option(min=0.001, max=36_500, help="Days until the key expires.")] = None,
    queued_items: Annotated[int | None, typer.Option(min=1, help="Images that may wait for a worker.")] = None,
    items_per_day: Annotated[int | None, typer.Option(min=1, help="Images accepted in one day, by UTC.")] = None,
    megapixel_steps_per_day: Annotated[
        float | None, typer.Option(min=0.001, help="Megapixels times denoising steps accepted in one day.")
    ] = None,
    max_megapixels: Annotated[float | None, typer.Option(min=0.001, help="Size of the largest image.")] = None,
    max_steps: Annotated[int | None, typer.Option(min=1, help="Denoising steps of one image.")] = None,
    model: Annotated[list[str] | None, typer.Option(help="Model id that jobs may name; repeat it for several.")] = None,
    engine: Annotated[list[str] | None, typer.Option(help="Engine that jobs may name; repeat it for several.")] = None,
    adapter: Annotated[
        list[str] | None,
        typer.Option(help="Pattern of adapters that jobs may name, e.g. 'team/*' or 'hf://acme/*'; repeat it."),
    ] = None,
    as_json: _Json = False,
    data: _Data = None,
) -> None:
    """Make a key and print it. It is shown once: Redis has only a hash of it."""
    from shared.keys.record import KeyLimits, KeyRecord
    from shared.keys.secret import KeyText, SecretHash

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
    _check(name, tenant, limits)
    roles = _roles(role or ["submit", "read"])
    ledger = _open(data)
    text, now_ms = KeyText.make(), ledger.now_ms()
    record = KeyRecord(
        key_id=text.key_id,
        name=name,
        tenant=tenant,
        roles=roles,
        secret=SecretHash.of(text.secret),
        created_ms=now_ms,
        limits=limits,
        expires_ms=None if days is None else now_ms + round(days * _DAY_MS),
    )
    ledger.api_keys.add(record)
    _print_secret(text, record, as_json=as_json, now_ms=now_ms)


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
    if (state := record.state(now_ms=now_ms)) != "active":
        raise KeyRefused(f"the key {key_id} is {state}; make a new one with `flux2 keys create`")
    text = KeyText.make(key_id)
    until_ms = now_ms + round(keep_hours * _HOUR_MS)
    ledger.api_keys.rotate(record, SecretHash.of(text.secret), previous_until_ms=until_ms)
    _print_secret(text, record, as_json=as_json, now_ms=now_ms)


def _roles(names: list[str]) -> frozenset[Role]:
    from shared.keys.record import ROLES

    known: dict[str, Role] = {role: role for role in ROLES}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise typer.BadParameter(f"{unknown[0]!r} is no role; choose from {', '.join(ROLES)}", param_hint="--role")
    return frozenset(known[name] for name in names)


def _check(name: str, tenant: str, limits: KeyLimits) -> None:
    from shared.catalog import MODELS
    from shared.job import ENGINES
    from shared.keys.record import TENANT

    if not name.strip() or not name.isprintable() or len(name) > 100:
        raise typer.BadParameter("write up to 100 printable characters", param_hint="NAME")
    if not TENANT.fullmatch(tenant):
        raise typer.BadParameter(
            f"{tenant!r} cannot be a tenant; use up to 64 letters, digits, '.', '_' and '-', and begin with a letter "
            "or a digit",
            param_hint="--tenant",
        )
    for option, values, known in (("--model", limits.models, (*MODELS,)), ("--engine", limits.engines, ENGINES)):
        for value in values:
            if value not in known:
                raise typer.BadParameter(f"{value!r} is unknown; choose from {', '.join(known)}", param_hint=option)


def _open(data: Path | None) -> Ledger:
    from shared.ledger import Ledger
    from shared.local.data_folder import read_settings
    from shared.settings import Settings

    settings = read_settings(data) if data else Settings()
    return Ledger.connect(settings.redis.url, settings.queue, timeout_s=_TIMEOUT_S)


def _unknown(key_id: str) -> Exception:
    from shared.errors import KeyRefused

    return KeyRefused(f"no key has the id {key_id!r}; `flux2 keys list` shows the ids")


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
