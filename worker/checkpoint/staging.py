"""Read tensors one after the other through a bounded amount of memory, for a caller that converts each of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from worker.checkpoint.reader import Completion

# Two batches are in memory: one arrives while the other is converted. Each keeps all threads of a `Reader` busy, and
# holds the largest layer of FLUX.2 [dev], 0.7 GB.
_BATCH_BYTES = 1_000_000_000


def read_staged(
    shapes: Mapping[str, tuple[int, ...]],
    begin_read: Callable[[str, Tensor], Completion],
    *,
    device: torch.device,
    dtype: torch.dtype,
) -> Iterator[tuple[str, Tensor]]:
    """Yield each tensor with its name, in order, while later ones arrive.

    A tensor is valid until the next one is asked for; work that was queued on the current stream until then still sees
    its values.

    Args:
        shapes: of the tensors, by name.
        begin_read: begins to fill a tensor, after all work in the current stream; see `Reader.read`.
    """
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    batches = _batches(sizes, limit=_BATCH_BYTES // dtype.itemsize)
    largest = max((sum(sizes[name] for name in batch) for batch in batches), default=0)
    buffers = [torch.empty(largest, dtype=dtype, device=device) for _ in batches[:2]]

    def begin(number: int) -> list[tuple[str, Tensor, Completion]]:
        started, start = [], 0
        for name in batches[number] if number < len(batches) else ():
            tensor = buffers[number % 2][start : start + sizes[name]].view(shapes[name])
            started.append((name, tensor, begin_read(name, tensor)))
            start += sizes[name]
        return started

    following = begin(0)
    for number in range(len(batches)):
        # The caller is done with the batch before this one, whose memory the next one takes.
        arriving, following = following, begin(number + 1)
        for name, tensor, complete in arriving:
            complete()
            yield name, tensor


def _batches(sizes: Mapping[str, int], *, limit: int) -> list[list[str]]:
    """Divide names, in order, into batches of at most `limit`; a larger one is a batch by itself."""
    batches: list[list[str]] = []
    room = 0
    for name, size in sizes.items():
        if not batches or size > room:
            batches.append([])
            room = limit
        batches[-1].append(name)
        room -= size
    return batches
