"""The Triton kernel of `worker.kernels.checksum`.

Only torch for GPUs brings Triton, so this module is imported when the kernel first runs.
"""

import triton
import triton.language as tl
from torch import Tensor

_WORDS = 1024


def launch(words: Tensor, total: Tensor) -> None:
    """Add int64 words, (rows, columns), to `total`; row i is multiplied by 2 i + 1."""
    rows, columns = words.shape
    _add_up[(rows,)](words, total, words.stride(0), columns, WORDS=_WORDS)


@triton.jit
def _add_up(words, total, stride, columns, WORDS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    sums = tl.zeros((WORDS,), dtype=tl.int64)
    for start in range(0, columns, WORDS):
        column = start + tl.arange(0, WORDS)
        sums += tl.load(words + row * stride + column, mask=column < columns, other=0)
    tl.atomic_add(total, tl.sum(sums) * (2 * row + 1))
