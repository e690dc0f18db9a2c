"""The identity of one worker process: its slot's name, its boot and the items that it takes."""

from __future__ import annotations

import socket
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field

from shared.job import Engine, pool


def slot_name(configured: str | None, device: str) -> str:
    """Name a slot so that its successor on the same host and device has the same name."""
    return configured or f"{socket.gethostname()}/{device}"


@dataclass(frozen=True)
class Slot:
    """Facts about this process that never change while it runs.

    Attributes:
        name: the same for each process that follows on this device.
        revision: of the base model's files.
        boot: random identity of this process.
    """

    name: str
    model: str
    device: str
    revision: str
    precision: str
    engines: Sequence[Engine]
    # A restarted process has the same name: only this separates its claims from its predecessor's.
    boot: str = field(default_factory=lambda: uuid.uuid4().hex)

    @property
    def pools(self) -> tuple[str, ...]:
        """Pools whose items this slot takes: one per engine."""
        return tuple(pool(self.model, engine) for engine in self.engines)
