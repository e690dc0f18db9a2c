"""The identity of one worker process: its slot's name, its boot id and the pools whose items it claims."""

from __future__ import annotations

import socket
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field

from shared.job import Engine, Feature, memory_gib, pools, wake_name


def slot_name(configured: str | None, device: str) -> str:
    """Return the configured name of a slot, or one made from host and device."""
    # A successor on the same device gets the same name, by which it finds its predecessor's items.
    return configured or f"{socket.gethostname()}/{device}"


@dataclass(frozen=True)
class Slot:
    """Facts about this process that never change while it runs.

    Attributes:
        name: stays the same when the process on this device is restarted.
        device: names of its devices, separated by commas.
        revision: identity of the base model's files.
        features: what the process can do beyond its engines.
        memory_bytes: memory of the device; 0 for a CPU.
        boot: random identity of this process.
    """

    name: str
    model: str
    device: str
    revision: str
    precision: str
    engines: Sequence[Engine]
    features: Sequence[Feature] = ()
    memory_bytes: int = 0
    # A restarted process has the same name: only this separates its claims from its predecessor's.
    boot: str = field(default_factory=lambda: uuid.uuid4().hex)

    @property
    def devices(self) -> int:
        """Number of devices that render each image together."""
        return len(self.device.split(","))

    @property
    def pools(self) -> tuple[str, ...]:
        """Pools whose items this slot claims."""
        return pools(self.model, self.engines, self.features)

    @property
    def wake_names(self) -> tuple[str, ...]:
        """Names of the queues from which this slot gets its wake-ups."""
        return tuple(wake_name(pool, memory_gib(self.memory_bytes)) for pool in self.pools)
