"""Exchange heads between the GPUs of one host: kernels write them straight into the other GPUs' memory, over NVLink."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import _symmetric_memory as symmetric_memory

from worker.model.heads import Angles, Heads, attend
from worker.model.token_split import SequenceSplit, TokenSplit

# A GPU that waits for another one computes nothing. After this time its step fails, and the process with it.
_TIMEOUT_MS = 120_000
# Barriers that follow each other directly use different channels.
_SENT, _RETURNED, _READ, _GATHERED = range(4)


class PeerExchange:
    """Exchanges bfloat16 heads of 128 channels; see `worker.model.head_exchange.HeadExchange`.

    Args:
        group: a process group; it only exchanges addresses.
        heads: number of heads of all devices, a multiple of the number of devices.
    """

    def __init__(self, group: Any, *, device: torch.device, heads: int, width: int, dtype: torch.dtype) -> None:
        self._group = group
        self._device = device
        self._rank = dist.get_rank(group)
        self._devices = dist.get_world_size(group)
        self._heads, self._width, self._dtype = heads, width, dtype
        self._memory: _SharedMemory | None = None
        self._split: TokenSplit | None = None
        self._maps: dict[SequenceSplit, _RowMaps] = {}

    def begin(self, split: TokenSplit) -> None:
        if split == self._split:
            return
        rows = split.single.length
        if self._memory is None or self._memory.rows < rows:
            # Kernels of this device may still read the smaller buffer.
            torch.cuda.synchronize(self._device)
            self._memory = None
            self._memory = _SharedMemory(
                self._group, rows, heads=self._heads, width=self._width, dtype=self._dtype, device=self._device
            )
        self._maps = {
            sequence: _RowMaps.of(sequence, rank=self._rank, device=self._device)
            for sequence in (split.double, split.single)
        }
        self._split = split

    def attend(self, parts: list[Heads], angles: Angles, eps: float) -> Tensor:
        from worker.kernels.exchange_kernel import return_rows

        split, memory = self._begun()
        sequence = split.double if len(parts) == 2 else split.single
        maps = self._maps[sequence]
        with torch.cuda.device(self._device):
            self._send(parts, angles, eps, sequence=sequence, memory=memory)
            memory.wait_for_all(_SENT)
            attended = attend(*memory.sequence(sequence.length))[0]
            return_rows(
                attended.contiguous(),
                owners=maps.owners,
                rows=maps.local_rows,
                buffers=memory.addresses[3],
                sender=self._rank,
            )
            memory.wait_for_all(_RETURNED)
            # A copy: the compiler may write to the memory that it gets, and the others write to this buffer.
            return memory.returned(sequence.count(self._rank))[None].clone()

    def gather_image(self, rows: Tensor) -> Tensor:
        split, memory = self._begun()
        image = split.single.image
        start = image[self._rank].start - image[0].start
        with torch.cuda.device(self._device):
            # The others may still read the rows that the last block returned to them.
            memory.wait_for_all(_READ)
            for device in range(self._devices):
                memory.returned(memory.rows, device=device).flatten(1)[start : start + rows.shape[1]].copy_(rows[0])
            memory.wait_for_all(_GATHERED)
            return memory.returned(image[-1].stop - image[0].start).flatten(1)[None].clone()

    def _begun(self) -> tuple[TokenSplit, _SharedMemory]:
        assert self._split is not None
        assert self._memory is not None
        return self._split, self._memory

    def _send(
        self, parts: list[Heads], angles: Angles, eps: float, *, sequence: SequenceSplit, memory: _SharedMemory
    ) -> None:
        """Write to each device its share of the heads of this device's tokens."""
        from worker.kernels.exchange_kernel import send, send_rotated

        queries, keys, values = memory.addresses[:3]
        counts = [part.query.shape[1] for part in parts]
        cosines, sines = (torch.split(angle, counts) for angle in angles)
        rows = torch.split(self._maps[sequence].rows, counts)
        for index, part in enumerate(parts):
            # Text that every device computes stays where it is.
            own = sequence.is_text_whole and index == 0
            receivers = range(self._rank, self._rank + 1) if own else range(self._devices)
            turned = cosines[index], sines[index], eps
            where: dict[str, Any] = {"rows": rows[index], "receivers": receivers}
            send_rotated(_dense(part.query), part.query_norm, *turned, buffers=queries, **where)
            send_rotated(_dense(part.key), part.key_norm, *turned, buffers=keys, **where)
            send(_dense(part.value), buffers=values, **where)


class _SharedMemory:
    """Memory of this device that all devices of the group write to.

    It holds this device's heads of all queries, keys and values, and the attended rows that are returned to it.

    Attributes:
        rows: number of rows of the longest sequence that fits.
        addresses: (devices,) int64: for queries, keys, values and returned rows, where each device has them.
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
        self.addresses = [(starts + index * self._part * dtype.itemsize).to(device) for index in range(4)]

    def wait_for_all(self, channel: int) -> None:
        """Make the current stream wait until the streams of all devices have come here."""
        self._handle.barrier(channel=channel, timeout_ms=_TIMEOUT_MS)

    def sequence(self, length: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values of this device's heads, each (1, length, heads, width)."""
        shape = (1, length, self._share, self._width)
        count = length * self._share * self._width
        query, key, value = (self._mine[index * self._part :][:count].view(shape) for index in range(3))
        return query, key, value

    def returned(self, rows: int, *, device: int | None = None) -> Tensor:
        """Return the rows that were returned to a device, this one by default: (rows, all heads, width)."""
        buffer: Tensor = self._mine if device is None else self._buffers[device]
        count = rows * self._heads * self._width
        return buffer[3 * self._part :][:count].view(rows, self._heads, self._width)


class _RowMaps(NamedTuple):
    """The rows of one sequence on one device, int32; see `worker.kernels.exchange_kernel`."""

    rows: Tensor
    owners: Tensor
    local_rows: Tensor

    @classmethod
    def of(cls, sequence: SequenceSplit, *, rank: int, device: torch.device) -> _RowMaps:
        return cls(sequence.rows(rank, device), sequence.owners(device), sequence.local_rows(device))


def _dense(values: Tensor) -> Tensor:
    """Return (tokens, heads, channels), channels contiguous, of a batch of one."""
    return values[0] if values.stride(-1) == 1 else values[0].contiguous()
