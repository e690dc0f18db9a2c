"""The memory through which the GPUs of one host exchange heads; see `worker.model.peer_exchange`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import _symmetric_memory as symmetric_memory

from worker.model.token_split import SequenceSplit

# A GPU that waits for another one computes nothing. After this time its step fails, and the process with it.
_TIMEOUT_MS = 120_000


class SharedMemory:
    """Memory of this device that all devices of a group write to.

    It holds this device's heads of all queries, keys and values, and the attended rows that are returned to it.

    Attributes:
        rows: number of rows of the longest sequence that fits.
        addresses: (4, devices) int64: for queries, keys, values and returned rows, where each device has them.
    """

    def __init__(
        self, group: Any, rows: int, *, heads: int, width: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.rows = rows
        self._heads, self._width = heads, width
        devices = dist.get_world_size(group)
        self._share = heads // devices
        self._part = rows * self._share * width
        size = 3 * self._part + rows * heads * width
        self._mine = symmetric_memory.empty(size, dtype=dtype, device=device)
        self._handle: Any = symmetric_memory.rendezvous(self._mine, group)
        self._buffers = [self._handle.get_buffer(other, (size,), dtype) for other in range(devices)]
        starts = torch.tensor(list(self._handle.buffer_ptrs), dtype=torch.int64)
        offsets = torch.arange(4)[:, None] * self._part * dtype.itemsize
        self.addresses = (starts + offsets).to(device)

    def wait_for_all(self, channel: int) -> None:
        """Make the current stream wait until the streams of all devices have come here."""
        self._handle.barrier(channel=channel, timeout_ms=_TIMEOUT_MS)

    def sequence(self, length: int, *, device: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values of a device's heads, each (1, length, heads, width).

        Args:
            device: this one by default.
        """
        buffer = self._mine if device is None else self._buffers[device]
        shape = (1, length, self._share, self._width)
        count = length * self._share * self._width
        query, key, value = (buffer[index * self._part :][:count].view(shape) for index in range(3))
        return query, key, value

    def returned(self, rows: int, *, device: int | None = None) -> Tensor:
        """Return the rows that were returned to a device, this one by default: (rows, all heads, width)."""
        buffer: Tensor = self._mine if device is None else self._buffers[device]
        count = rows * self._heads * self._width
        return buffer[3 * self._part :][:count].view(rows, self._heads, self._width)


class Staging:
    """Memory of this device from which copy engines copy its tokens' heads to the other devices.

    Attributes:
        addresses: (3, devices) int64: of queries, keys and values for each device; this device's are in its shared
            memory.
    """

    def __init__(self, sequence: SequenceSplit, memory: SharedMemory, *, rank: int) -> None:
        devices = len(sequence.image)
        # Each device begins with its neighbour, so that no two write to the same one.
        others = [(rank + step) % devices for step in range(1, devices)]
        own = memory.sequence(sequence.length)
        _, _, *shape = own[0].shape
        staged = own[0].new_empty(len(others), 3, sequence.count(rank), *shape)
        self.addresses = memory.addresses[:3].clone()
        self._transfers: list[tuple[Tensor, Tensor]] = []
        for other, of_other in zip(others, staged, strict=True):
            for index, values in enumerate(of_other):
                self.addresses[index, other] = values.data_ptr()
                target = memory.sequence(sequence.length, device=other)[index][0]
                self._transfers += _row_pairs(target, values, sequence, rank)

    def transfer(self) -> None:
        """Copy in the current stream."""
        for target, values in self._transfers:
            target.copy_(values)


def _row_pairs(target: Tensor, values: Tensor, sequence: SequenceSplit, rank: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the rows of a sequence that a device computes, and the same rows among its own; each contiguous."""
    text, image = sequence.text[rank], sequence.image[rank]
    yield target[text.start : text.stop], values[: len(text)]
    yield target[image.start : image.stop], values[len(text) :]
