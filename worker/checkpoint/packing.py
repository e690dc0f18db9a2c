"""Pack tensors into one block of memory, so that a single copy moves all of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

# Bytes. Kernels read vectors of 16 bytes, and matrix products want more.
_ALIGNMENT = 256


@dataclass(frozen=True)
class PackedTensor:
    """The part of a block of bytes that holds one tensor."""

    start: int
    size: int
    dtype: torch.dtype
    shape: torch.Size

    def view(self, block: Tensor) -> Tensor:
        """Return the tensor as a view of `block`."""
        return block[self.start : self.start + self.size].view(self.dtype).view(self.shape)


def pack_layout(tensors: Iterable[Tensor]) -> tuple[list[PackedTensor], int]:
    """Return where each tensor goes in a block, and the size of the block in bytes."""
    found: list[PackedTensor] = []
    start = 0
    for tensor in tensors:
        found.append(PackedTensor(start, tensor.nbytes, tensor.dtype, tensor.shape))
        start += -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT
    return found, start
