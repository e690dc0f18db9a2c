"""The Triton kernel of `worker.kernels.low_rank`.

Only torch for GPUs brings Triton, so this module is imported when the kernel first runs.
"""

import triton
import triton.language as tl


@triton.jit
def add_low_rank(
    weight,
    old,
    down,
    up,
    non_finite,
    rows,
    columns,
    rank,
    multiplier,
    scale,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    RANK: tl.constexpr,
):
    """Write one tile of the weight."""
    tile = tl.program_id(0)
    tiles = tl.cdiv(columns, COLUMNS)
    row = (tile // tiles) * ROWS + tl.arange(0, ROWS)
    column = (tile % tiles) * COLUMNS + tl.arange(0, COLUMNS)
    product = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    # In the order of the rank, like torch's float32 product; only this sum fuses products and additions, as torch does.
    for start in range(0, rank, RANK):
        inner = start + tl.arange(0, RANK)
        left = tl.load(
            up + row[:, None] * rank + inner[None, :],
            mask=(row[:, None] < rows) & (inner[None, :] < rank),
            other=0.0,
        ).to(tl.float32)
        right = tl.load(
            down + inner[:, None] * columns + column[None, :],
            mask=(inner[:, None] < rank) & (column[None, :] < columns),
            other=0.0,
        ).to(tl.float32)
        # TF32 would be faster, with other bits than torch's float32 product.
        product = tl.dot(left, right, product, input_precision="ieee")
    inside = (row[:, None] < rows) & (column[None, :] < columns)
    where = row[:, None].to(tl.int64) * columns + column[None, :]
    before = tl.load(old + where, mask=inside, other=0.0)
    # Multiplier first, then scale, as the trainer multiplies; rounded to the weight's dtype only at the end.
    new = (before.to(tl.float32) + product * multiplier * scale).to(before.dtype)
    tl.store(weight + where, new, mask=inside)
    # Only NaN differs from itself.
    wide = tl.abs(new.to(tl.float32))
    bad = (wide != wide) | (wide == float("inf"))
    if tl.max(bad.to(tl.int32)) > 0:
        tl.store(non_finite, 1)
