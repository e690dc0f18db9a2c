"""What the ledger's scripts counted since the first start, each in the step in which it happened."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, TypeVar, get_args

from shared.ledger import keys
from shared.ledger.claim import ClaimReason
from shared.ledger.session import Session

#: Why a worker that lives handed an item back; see `Ledger.release`. `memory`: the item did not fit on the device.
ReleaseReason = Literal["drain", "outage", "retry", "later", "memory"]
#: How a running item lost its worker: its lease expired, or the slot started again.
LeaseLoss = Literal["expired", "reclaimed"]
#: How the delivery of a webhook message ended.
Delivery = Literal["delivered", "failed"]
#: The ends of items apart from success, which `UsageReader.totals` counts.
UnsuccessfulEnd = Literal["failed", "canceled"]

_Name = TypeVar("_Name", bound=str)


@dataclass(frozen=True)
class Totals:
    """Counts of all processes together. Those of an earlier version add only to `deadline_exceeded`.

    Attributes:
        deadline_exceeded: items that were canceled because the deadline of their job had passed; also in `items`.
        claims: by reason.
        lost_leases: attempts that ended without their worker.
        releases: attempts that ended without an outcome of their item, by reason.
        items: items that ended without an image.
        webhooks: webhook messages that are not sent any more.
    """

    deadline_exceeded: int
    claims: Mapping[ClaimReason, int]
    lost_leases: Mapping[LeaseLoss, int]
    releases: Mapping[ReleaseReason, int]
    items: Mapping[UnsuccessfulEnd, int]
    webhooks: Mapping[Delivery, int]


# Values of each `Literal` have the type of the field.
_CLAIMS: Final[tuple[ClaimReason, ...]] = get_args(ClaimReason)
_LOST_LEASES: Final[tuple[LeaseLoss, ...]] = get_args(LeaseLoss)
_RELEASES: Final[tuple[ReleaseReason, ...]] = get_args(ReleaseReason)
_ITEMS: Final[tuple[UnsuccessfulEnd, ...]] = get_args(UnsuccessfulEnd)
_WEBHOOKS: Final[tuple[Delivery, ...]] = get_args(Delivery)


def read_totals(session: Session) -> Totals:
    """Read the counts; one that never happened is 0."""
    with session.commands():
        stored = {field: int(count) for field, count in session.redis.hgetall(keys.TOTALS).items()}

    def named(kind: str, names: tuple[_Name, ...]) -> Mapping[_Name, int]:
        return {name: stored.get(f"{kind}_{name}", 0) for name in names}

    return Totals(
        deadline_exceeded=stored.get("deadline_exceeded", 0),
        claims=named("claims", _CLAIMS),
        lost_leases=named("leases", _LOST_LEASES),
        releases=named("releases", _RELEASES),
        items=named("items", _ITEMS),
        webhooks=named("webhooks", _WEBHOOKS),
    )
