"""Read what the slots of a service do and what waits for them."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from dataclasses import dataclass

from flux2_client.async_client import AsyncClient
from flux2_client.models import Queue, QueueLine, Slot

# Slots and lines of one page: one call shows the whole of most fleets.
_PAGE_SIZE = 500
_LINES = 200
# A person should see these first.
_FIRST_STATES = ("faulty", "draining")


@dataclass(frozen=True)
class Fleet:
    """The slots and the queue at one moment.

    Attributes:
        slots: those that take no work first, then by name.
    """

    slots: tuple[Slot, ...]
    queue: Queue

    @property
    def left_out(self) -> int:
        """Number of live slots that were not read."""
        return max(0, self.queue.slots - len(self.slots))

    @property
    def drain_s(self) -> float | None:
        """Seconds until no image waits, at the rate of the last minute; None without a rate."""
        rate = self.queue.images_per_minute
        return 60 * self.queue.queued / rate if rate else None

    def lines_by_tenant(self) -> list[QueueLine]:
        """Return the lines of the queue so that those of a tenant follow one another, the busiest tenant first."""
        waiting: Counter[str] = Counter()
        for line in self.queue.data:
            waiting[line.tenant] += line.queued
        # The rest of a tenant comes after what is known.
        return sorted(
            self.queue.data, key=lambda line: (-waiting[line.tenant], line.tenant, line.adapters is None, -line.queued)
        )


async def read_fleet(client: AsyncClient, *, tenant: str | None, most_slots: int | None = None) -> Fleet:
    """Read the queue and the slots.

    Args:
        tenant: counts only its images; None counts all that the caller may see.
        most_slots: number of slots after which no further page is read; None reads all.
    """
    queue, slots = await asyncio.gather(client.queue(limit=_LINES, tenant=tenant), _read_slots(client, most_slots))
    return Fleet(tuple(sorted(slots, key=_rank)), queue)


async def _read_slots(client: AsyncClient, most: int | None) -> list[Slot]:
    slots: list[Slot] = []
    async for slot in client.slots(page_size=_PAGE_SIZE):
        slots.append(slot)
        if len(slots) == most:
            break
    return slots


def _rank(slot: Slot) -> tuple[bool, list[tuple[bool, int, str]]]:
    return slot.state not in _FIRST_STATES, _natural_order(slot.name)


def _natural_order(name: str) -> list[tuple[bool, int, str]]:
    """Return a key by which gpu-2 comes before gpu-10."""
    parts = re.findall(r"[0-9]+|[^0-9]+", name)
    return [(part.isascii() and part.isdigit(), int(part) if part[:1].isdigit() else 0, part) for part in parts]
