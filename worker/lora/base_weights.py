"""The clean values of weights that adapters change, to put back: bytes of the checkpoint, or copies.

The checkpoint's bytes cost a process no memory: all workers of a host read the same page cache, where copies in host
memory would be 63 GB for each of them. Copies come back a little sooner, those on the device at once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from shared.errors import CheckpointError, WeightsLost
from worker.checkpoint.pinned import pinned_like, side_stream
from worker.checkpoint.reader import Completion, Reader, Region, already_complete
from worker.model.placement import BaseWeightsPlace

logger = logging.getLogger("flux2.worker.lora")


class BaseWeights:
    """Keeps what is clean of the parameters that are about to be changed.

    Args:
        regions: parameters whose bytes lie in files as they are, in the order of their rows.
        reader: of those files.
        device_bytes: how much of what is not kept on the device may lie there all the same.
    """

    def __init__(
        self,
        *,
        device: torch.device,
        place: BaseWeightsPlace,
        regions: Mapping[str, Sequence[Region]],
        reader: Reader,
        device_bytes: int = 0,
    ) -> None:
        self._device = device
        self._place = place
        self._regions = regions
        self._room = device_bytes
        self._share = 0.0  # of what is kept from now on, that lies on the device all the same
        self._owed = 0.0
        self._copies: dict[str, Tensor] = {}
        self._stream = side_stream(device)
        self._reader = reader
        self._under_way: dict[str, Completion] = {}
        if place == "file":
            for file in {region.file for parts in regions.values() for region in parts}:
                reader.pin(file)

    @property
    def bytes(self) -> int:
        """What the copies take."""
        return sum(copy.nbytes for copy in self._copies.values())

    def plan_backups(self, sizes: Mapping[str, int]) -> None:
        """Say what is about to be kept, in bytes, so that the device's share of it is spread evenly.

        While one of those is copied on the device, another is on its way from the host.
        """
        new = sum(size for name, size in sizes.items() if name not in self._copies)
        self._share, self._owed = (min(1.0, self._room / new) if new else 0.0), 0.0

    def back_up(self, name: str, weight: Tensor) -> None:
        """Remember a parameter, whose values are clean now."""
        if name in self._copies:
            return
        self._owed += self._share * weight.nbytes
        on_device = self._place == "device" or weight.nbytes <= min(self._room, self._owed)
        if self._place == "file" and name in self._regions and not on_device:
            return
        self._owed -= weight.nbytes if on_device else 0
        copy = torch.empty_like(weight) if on_device else pinned_like(weight)
        self._copies[name] = copy.copy_(weight)
        self._room -= weight.nbytes if on_device else 0

    def copy_on_device(self, name: str) -> Tensor | None:
        """Return a parameter's copy, not to be written to, if it lies on the device."""
        copy = self._copies.get(name)
        return copy if copy is not None and copy.device == self._device else None

    def _arrive(self, name: str) -> None:
        with _lost():
            self._under_way.pop(name)()

    @torch.no_grad()
    def restore(self, name: str, weight: Tensor) -> Callable[[], None]:
        """Begin to give `weight` the clean values of a parameter that was kept before; return what waits for the end.

        That holds up the current stream. Both raise:
            WeightsLost: a file has become shorter, or cannot be read; `weight` is then in no known state.
        """
        copy = self._copies.get(name)
        if copy is None:
            with _lost():
                self._under_way[name] = self._reader.read_rows(self._regions[name], weight)
            return partial(self._arrive, name)
        if copy.device == self._device or self._stream is None:
            weight.copy_(copy)
            return already_complete
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            weight.copy_(copy, non_blocking=True)
            arrived: Any = self._stream.record_event()
        return lambda: current.wait_event(arrived)

    def wait(self) -> None:
        """Return when nothing is on its way any more, whatever came of it."""
        for name in list(self._under_way):
            try:
                self._under_way.pop(name)()
            except CheckpointError as error:
                logger.warning("clean weights not read", extra={"parameter": name, "error": str(error)})
        if self._stream is not None:
            self._stream.synchronize()


@contextmanager
def _lost() -> Iterator[None]:
    try:
        yield
    except CheckpointError as error:
        raise WeightsLost(f"clean weights cannot be read again: {error}") from error
