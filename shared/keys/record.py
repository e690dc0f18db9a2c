"""What Redis stores of an API key: whose it is, what it allows, and until when."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field

from shared.keys.secret import SecretHash

#: `submit` creates and cancels jobs and uploads, `read` follows and lists jobs and adapters, `admin` does both for
#: every tenant and reads the metrics.
Role = Literal["submit", "read", "admin"]
ROLES: tuple[Role, ...] = get_args(Role)

#: Names of tenants that a key, or a trusted proxy, can name; the first character makes it the name of a folder.
TENANT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
#: Owner of the jobs and uploads of callers without a name.
DEFAULT_TENANT = "default"

_Count = Annotated[int, Field(ge=1, le=10**9)]
_Amount = Annotated[float, Field(gt=0, le=10**9)]
_PIXELS_PER_MEGAPIXEL = 1_000_000


class KeyLimits(BaseModel):
    """What a key allows; None, or an empty list, sets no limit.

    Attributes:
        queued_items: images of this key that may wait for a worker.
        items_per_day: images accepted in one day, by UTC.
        megapixel_steps_per_day: width times height in 10^6 pixels, times denoising steps, accepted in one day.
        max_megapixels: size of the largest image, in 10^6 pixels.
        max_steps: denoising steps of one image.
        models, engines: the only ones that jobs may name.
        adapters: patterns of the only `loras[].path` that jobs may name; `*` stands for any text.
    """

    # An API that ignored a limit of a later version would allow what it forbids.
    model_config = ConfigDict(frozen=True, extra="forbid")

    queued_items: _Count | None = None
    items_per_day: _Count | None = None
    megapixel_steps_per_day: _Amount | None = None
    max_megapixels: _Amount | None = None
    max_steps: _Count | None = None
    models: tuple[str, ...] = ()
    engines: tuple[str, ...] = ()
    adapters: tuple[str, ...] = ()

    def changed(self, changes: Mapping[str, object], *, removed: Iterable[str]) -> Self:
        """Return the limits with other values for some fields, and without those in `removed`.

        Raises:
            ValueError: a value is not allowed for its limit.
        """
        kept = self.model_dump(exclude_defaults=True, exclude=set(removed))
        return self.model_validate({**kept, **changes})

    @property
    def pixel_steps_per_day(self) -> int | None:
        """The daily megapixel-steps as whole pixels, in which the ledger counts."""
        limit = self.megapixel_steps_per_day
        return None if limit is None else round(limit * _PIXELS_PER_MEGAPIXEL)

    @property
    def max_pixels(self) -> int | None:
        return None if self.max_megapixels is None else round(self.max_megapixels * _PIXELS_PER_MEGAPIXEL)

    @property
    def counts(self) -> bool:
        """Whether the ledger must count the jobs of the key."""
        return not (self.queued_items is self.items_per_day is self.megapixel_steps_per_day is None)


@dataclass(frozen=True)
class KeyRecord:
    """One API key; times in ms since the epoch.

    Attributes:
        name: what people call it.
        previous, previous_until_ms: the hash before the last rotation, and until when it is still accepted.
        used_on: the last day on which it was used, by UTC; empty if never.
    """

    key_id: str
    name: str
    tenant: str
    roles: frozenset[Role]
    secret: SecretHash
    created_ms: int
    limits: KeyLimits = field(default_factory=KeyLimits)
    expires_ms: int | None = None
    revoked_ms: int | None = None
    previous: SecretHash | None = None
    previous_until_ms: int = 0
    used_on: str = ""

    def matches(self, secret: str, *, now_ms: int) -> bool:
        """Return whether a secret is that of the key."""
        # Both are compared in any case, so that the time shows nothing.
        is_current = self.secret.matches(secret)
        is_previous = (self.previous or self.secret).matches(secret) and now_ms < self.previous_until_ms
        return is_current or is_previous

    def state(self, *, now_ms: int) -> Literal["active", "expired", "revoked"]:
        if self.revoked_ms is not None:
            return "revoked"
        return "expired" if self.expires_ms is not None and now_ms >= self.expires_ms else "active"

    def rotated(self, secret: SecretHash, *, previous_until_ms: int) -> Self:
        """Return the key with a new secret; the present one is accepted until `previous_until_ms`."""
        return replace(self, secret=secret, previous=self.secret, previous_until_ms=previous_until_ms)

    def fields(self) -> dict[str, str | int]:
        """Return the fields of the hash in Redis."""
        optional = {"expires_ms": self.expires_ms, "revoked_ms": self.revoked_ms}
        return {
            "name": self.name,
            "tenant": self.tenant,
            "roles": ",".join(sorted(self.roles)),
            "limits": self.limits.model_dump_json(exclude_defaults=True),
            "salt": self.secret.salt,
            "digest": self.secret.digest,
            "created_ms": self.created_ms,
            "used_on": self.used_on,
            **{name: value for name, value in optional.items() if value is not None},
            **self.previous_fields(),
        }

    def previous_fields(self) -> dict[str, str | int]:
        if self.previous is None:
            return {}
        return {
            "previous_salt": self.previous.salt,
            "previous_digest": self.previous.digest,
            "previous_until_ms": self.previous_until_ms,
        }

    @classmethod
    def read(cls, key_id: str, fields: Mapping[str, str]) -> Self:
        """Build the record from the fields of its hash.

        Raises:
            ValueError: a later version stored a limit that this version does not know.
        """
        known: dict[str, Role] = {role: role for role in ROLES}
        has_previous = "previous_salt" in fields
        return cls(
            key_id=key_id,
            name=fields["name"],
            tenant=fields["tenant"],
            # A role of a later version allows nothing here.
            roles=frozenset(known[role] for role in fields["roles"].split(",") if role in known),
            secret=SecretHash(fields["salt"], fields["digest"]),
            created_ms=int(fields["created_ms"]),
            limits=KeyLimits.model_validate_json(fields["limits"]),
            expires_ms=int(fields["expires_ms"]) if "expires_ms" in fields else None,
            revoked_ms=int(fields["revoked_ms"]) if "revoked_ms" in fields else None,
            previous=SecretHash(fields["previous_salt"], fields["previous_digest"]) if has_previous else None,
            previous_until_ms=int(fields.get("previous_until_ms", 0)),
            used_on=fields.get("used_on", ""),
        )

    def public(self, *, now_ms: int) -> dict[str, Any]:
        """Return what people may see of the key."""
        return {
            "id": self.key_id,
            "name": self.name,
            "tenant": self.tenant,
            "roles": sorted(self.roles),
            "state": self.state(now_ms=now_ms),
            "created_ms": self.created_ms,
            "expires_ms": self.expires_ms,
            "revoked_ms": self.revoked_ms,
            "used_on": self.used_on or None,
            "limits": json.loads(self.limits.model_dump_json(exclude_defaults=True)),
        }
