"""The bodies that make and describe API keys."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from api.timestamps import format_ms, format_ms_or_none
from shared.catalog import MODELS
from shared.job import ENGINES
from shared.keys.issue import check_key_engines, check_key_models, check_key_name
from shared.keys.record import DEFAULT_TENANT, TENANT, KeyLimits, KeyRecord, Role


class NewKeyLimits(KeyLimits):
    """What the key allows; a field that is left out sets no limit."""

    models: Annotated[tuple[str, ...], AfterValidator(check_key_models)] = Field(
        (),
        description="Models that jobs may name; empty for all.",
        json_schema_extra={"items": {"type": "string", "enum": list(MODELS)}},
    )
    engines: Annotated[tuple[str, ...], AfterValidator(check_key_engines)] = Field(
        (),
        description="Engines that jobs may name; empty for all.",
        json_schema_extra={"items": {"type": "string", "enum": list(ENGINES)}},
    )


class NewKey(BaseModel):
    """The key to make, as `flux2 keys create` takes it."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"example": {"name": "alice", "tenant": "studio", "limits": {"items_per_day": 500}}},
    )

    name: Annotated[str, AfterValidator(check_key_name)] = Field(
        max_length=100, description="Who or what will use the key, e.g. `alice` or `nightly-renders`."
    )
    tenant: str = Field(
        DEFAULT_TENANT,
        pattern=f"^{TENANT.pattern}$",
        description="Tenant whose jobs and uploads the key creates and sees.",
    )
    roles: list[Role] = Field(["submit", "read"], min_length=1, max_length=3)
    expires_in_days: float | None = Field(
        None, gt=0, le=36_500, description="Days until the key expires; null for never."
    )
    limits: NewKeyLimits = NewKeyLimits()


class KeyLine(BaseModel):
    """One API key, without its secret, which nobody has but its holder."""

    id: str
    name: str = Field(description="Who or what uses the key.")
    tenant: str
    roles: list[Role]
    state: Literal["active", "expired", "revoked"]
    created_at: str = Field(description="RFC 3339, UTC.")
    expires_at: str | None
    revoked_at: str | None
    used_on: str | None = Field(description="Last day on which the key was used, UTC; null if never.")
    limits: KeyLimits | None = Field(
        description="Null for limits of a later version; no API of this version accepts such a key."
    )

    @classmethod
    def of(cls, record: KeyRecord, *, now_ms: int, limits: KeyLimits | None) -> Self:
        """Describe a key; `limits` are those of the record, unless they cannot be read."""
        return cls(
            id=record.key_id,
            name=record.name,
            tenant=record.tenant,
            roles=sorted(record.roles),
            state=record.state(now_ms=now_ms),
            created_at=format_ms(record.created_ms),
            expires_at=format_ms_or_none(record.expires_ms),
            revoked_at=format_ms_or_none(record.revoked_ms),
            used_on=record.used_on or None,
            limits=limits,
        )


class MadeKey(KeyLine):
    """A key that was made."""

    key: str = Field(description="The key itself, for `Authorization: Bearer`. It is in this answer alone.")


class KeyList(BaseModel):
    """One page of the keys, the oldest first, also those that were revoked or have expired."""

    data: list[KeyLine]
    has_more: bool = Field(description="Whether more keys follow.")
    next_cursor: str | None = Field(description="Pass it as `cursor` to get the next page; null on the last page.")
