"""Tensors side by side in one block of memory, which one copy moves."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

# In bytes: kernels read vectors of 16, and matrix products want more.
_ALIGNMENT = 256


@dataclass(frozen=True)
class PackedTensor:
    """Where a tensor lies in a block of bytes."""

    start: int
    size: int
    dtype: torch.dtype
    shape: torch.Size

    def view(self, block: Tensor) -> Tensor:
        """Return the tensor that lies here in `block`."""
        return block[self.start : self.start + self.size].view(self.dtype).view(self.shape)


def pack_layout(tensors: Iterable[Tensor]) -> tuple[list[PackedTensor], int]:
    """Return a place for each tensor, and the bytes of the whole block."""
    found: list[PackedTensor] = []
    start = 0
    for tensor in tensors:
        found.append(PackedTensor(start, tensor.nbytes, tensor.dtype, tensor.shape))
        start += -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT
    return found, start
