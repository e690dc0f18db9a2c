"""Back the base weights up, and restore them after an adapter swap.

Base weights are restored by copying, never by subtracting: bfloat16 does not undo an addition (6 % of the entries would
differ after one round trip). A backup is a copy on the device, a copy in host memory, or the checkpoint file itself.
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
    """Backs up parameters before adapters change them, and restores them.

    Args:
        place: where to keep backups.
        regions: parameters that can be restored from files, with the file regions of their rows in order.
        reader: reads those files.
        device_bytes: device memory that backups may use when `place` is host or file.
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
        self._device_bytes_left = device_bytes
        self._device_share = 0.0  # part of the planned bytes that is copied on the device
        self._device_credit = 0.0  # bytes of that share that are still unused
        self._copies: dict[str, Tensor] = {}
        self._stream = side_stream(device)
        self._reader = reader
        self._reads: dict[str, Completion] = {}  # from files, not yet waited for
        if place == "file":
            for file in {region.file for parts in regions.values() for region in parts}:
                reader.pin(file)

    @property
    def copied_bytes(self) -> int:
        """Memory of all copies, on the device and on the host."""
        return sum(copy.nbytes for copy in self._copies.values())

    def plan_backups(self, sizes: Mapping[str, int]) -> None:
        """Spread the device's memory evenly over the parameters that are about to be backed up.

        Args:
            sizes: bytes of each parameter.
        """
        # Evenly, because a copy on the device hides the transfer of the next parameter from the host.
        new = sum(size for name, size in sizes.items() if name not in self._copies)
        self._device_share = min(1.0, self._device_bytes_left / new) if new else 0.0
        self._device_credit = 0.0

    def back_up(self, name: str, weight: Tensor) -> None:
        """Make sure that a parameter can be restored to its current values; a second call changes nothing."""
        if name in self._copies:
            return
        self._device_credit += self._device_share * weight.nbytes
        on_device = self._place == "device" or weight.nbytes <= min(self._device_bytes_left, self._device_credit)
        # The file costs no memory: all workers of a host read the same page cache, where copies in host memory would
        # take 63 GB for each worker.
        if self._place == "file" and name in self._regions and not on_device:
            return
        self._device_credit -= weight.nbytes if on_device else 0
        copy = torch.empty_like(weight) if on_device else pinned_like(weight)
        self._copies[name] = copy.copy_(weight)
        self._device_bytes_left -= weight.nbytes if on_device else 0

    def copy_on_device(self, name: str) -> Tensor | None:
        """Return a parameter's copy if it is on the device; do not write to it."""
        copy = self._copies.get(name)
        return copy if copy is not None and copy.device == self._device else None

    @torch.no_grad()
    def restore(self, name: str, weight: Tensor) -> Callable[[], None]:
        """Begin to write a parameter's backup to `weight`.

        Returns:
            A function that makes the current stream wait until the values have arrived.

        Raises:
            WeightsLost: a file is shorter than before or cannot be read; the returned function raises it too. The
                values of `weight` are then undefined.
        """
        copy = self._copies.get(name)
        if copy is None:
            with _as_weights_lost():
                self._reads[name] = self._reader.read_rows(self._regions[name], weight)
            return partial(self._finish_read, name)
        if copy.device == self._device or self._stream is None:
            weight.copy_(copy)
            return already_complete
        current = torch.cuda.current_stream(self._device)
        # The current stream may still read this weight.
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            weight.copy_(copy, non_blocking=True)
            arrived: Any = self._stream.record_event()
        return lambda: current.wait_event(arrived)

    def finish_reads(self) -> None:
        """Wait until no transfer runs; log failed transfers."""
        for name in list(self._reads):
            try:
                self._reads.pop(name)()
            except CheckpointError as error:
                logger.warning("base weights not read", extra={"parameter": name, "error": str(error)})
        if self._stream is not None:
            self._stream.synchronize()

    def _finish_read(self, name: str) -> None:
        with _as_weights_lost():
            self._reads.pop(name)()


@contextmanager
def _as_weights_lost() -> Iterator[None]:
    try:
        yield
    except CheckpointError as error:
        raise WeightsLost(f"base weights cannot be read again: {error}") from error
