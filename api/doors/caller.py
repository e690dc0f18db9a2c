"""Who makes a call, and what they may see and do."""

from __future__ import annotations

from dataclasses import dataclass, field

from shared.keys.record import DEFAULT_TENANT, KeyLimits, Role


@dataclass(frozen=True)
class Caller:
    """The caller of one request.

    Attributes:
        tenant: owner of what the caller creates.
        key_id: empty for a caller without a key.
        is_anonymous: no key is needed here, and the caller did not say who it is: it may do everything.
    """

    tenant: str
    roles: frozenset[Role]
    key_id: str = ""
    limits: KeyLimits = field(default_factory=KeyLimits)
    is_anonymous: bool = False

    def may(self, role: Role) -> bool:
        return role in self.roles or "admin" in self.roles

    @property
    def visible_tenant(self) -> str | None:
        """The tenant whose jobs the caller sees and cancels; None for those of every tenant."""
        return None if self.is_anonymous or "admin" in self.roles else self.tenant

    @property
    def upload_tenant(self) -> str | None:
        """The tenant whose uploads the caller names, stores and deletes; None for those without an owner."""
        return None if self.is_anonymous or self.tenant == DEFAULT_TENANT else self.tenant
