"""Exchange heads between the GPUs of one host, which write to each other's memory, over NVLink.

Kernels write straight into the other GPUs' memory. While a product is computed, copy engines do so instead: kernels
would wait for multiprocessors, all of which the product uses.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from worker.model.heads import Angles, HeadProjection, Heads, attend
from worker.model.peer_memory import SharedMemory, Staging
from worker.model.rotary_norm import contiguous_channels
from worker.model.token_split import SequenceSplit, TokenSplit

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
        self._memory: SharedMemory | None = None
        self._split: TokenSplit | None = None
        self._maps: dict[SequenceSplit, _RowMaps] = {}
        self._staging: Staging | None = None
        # Its barrier's kernel runs as soon as any block of the product has ended, not after all of them.
        self._side: Any = torch.cuda.Stream(device, priority=-1)  # type: ignore[no-untyped-call]

    def begin(self, split: TokenSplit) -> None:
        if split == self._split:
            return
        rows = split.single.length
        self._staging = None
        if self._memory is None or self._memory.rows < rows:
            # Kernels of this device may still read the smaller buffer.
            torch.cuda.synchronize(self._device)
            self._memory = None
            self._memory = SharedMemory(
                self._group, rows, heads=self._heads, width=self._width, dtype=self._dtype, device=self._device
            )
        self._maps = {
            sequence: _RowMaps.of(sequence, rank=self._rank, device=self._device)
            for sequence in (split.double, split.single)
        }
        self._staging = Staging(split.single, self._memory, rank=self._rank)
        self._split = split

    def attend(self, parts: list[Heads], angles: Angles, eps: float) -> Tensor:
        split, memory = self._begun()
        sequence = split.double if len(parts) == 2 else split.single
        with torch.cuda.device(self._device):
            self._send(parts, angles, eps, sequence=sequence, memory=memory)
            memory.wait_for_all(_SENT)
            return self._attend_to(sequence, memory)

    def project_and_attend(self, projection: HeadProjection, angles: Angles, eps: float) -> tuple[Tensor, Tensor]:
        split, memory = self._begun()
        assert self._staging is not None
        with torch.cuda.device(self._device):
            main = torch.cuda.current_stream(self._device)
            self._send([projection.heads()], angles, eps, sequence=split.single, memory=memory, staging=self._staging)
            # All devices have left the last block's attention, which reads what is overwritten now: this stream has
            # passed the barrier that follows it.
            staged = main.record_event()
            # Before the transfer: a device that is faster than this process queues work would transfer first.
            gate_up = projection.gate_up()
            self._side.wait_event(staged)
            with torch.cuda.stream(self._side):
                self._staging.transfer()
                memory.wait_for_all(_SENT)
            main.wait_stream(self._side)
            return self._attend_to(split.single, memory), gate_up

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

    def _begun(self) -> tuple[TokenSplit, SharedMemory]:
        assert self._split is not None
        assert self._memory is not None
        return self._split, self._memory

    def _send(
        self,
        parts: list[Heads],
        angles: Angles,
        eps: float,
        *,
        sequence: SequenceSplit,
        memory: SharedMemory,
        staging: Staging | None = None,
    ) -> None:
        """Write to each device its share of the heads of this device's tokens; with `staging`, only to this device."""
        from worker.kernels.exchange_kernel import send

        counts = [part.query.shape[1] for part in parts]
        cosines, sines = (torch.split(angle, counts) for angle in angles)
        rows = torch.split(self._maps[sequence].rows, counts)
        for index, part in enumerate(parts):
            # Text that every device computes stays where it is.
            own = sequence.is_text_whole and index == 0
            send(
                *(contiguous_channels(values)[0] for values in part[:3]),
                norms=(part.query_norm, part.key_norm),
                angles=(cosines[index], sines[index]),
                eps=eps,
                rows=rows[index],
                buffers=memory.addresses[:3] if staging is None else staging.addresses,
                receivers=range(self._rank, self._rank + 1) if own else range(self._devices),
                staged_by=None if staging is None else self._rank,
            )

    def _attend_to(self, sequence: SequenceSplit, memory: SharedMemory) -> Tensor:
        """Attend to the heads that this device has received, and return the results to the devices of their tokens."""
        from worker.kernels.exchange_kernel import return_rows

        maps = self._maps[sequence]
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


class _RowMaps(NamedTuple):
    """The rows of one sequence on one device, int32; see `worker.kernels.exchange_kernel`."""

    rows: Tensor
    owners: Tensor
    local_rows: Tensor

    @classmethod
    def of(cls, sequence: SequenceSplit, *, rank: int, device: torch.device) -> _RowMaps:
        return cls(sequence.rows(rank, device), sequence.owners(device), sequence.local_rows(device))
