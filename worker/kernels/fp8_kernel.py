"""The Triton kernels of `worker.model.fp8_rows`.

Only torch for GPUs brings Triton, so this module is imported when a kernel first runs.
"""

import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra import libdevice

# One program holds a whole row in registers, so wider rows need more warps.
_WIDE = 8192


def launch(
    plain: Tensor | None, gate_up: Tensor | None, quantized: Tensor, scales: Tensor, *, plain_scales: Tensor | None
) -> None:
    """Quantise rows; see `worker.model.fp8_rows.quantize_rows`."""
    rows, columns = quantized.shape
    # Fewer registers, so that a multiprocessor reads several rows at once.
    wide = {"num_warps": 16, "maxnreg": 64} if columns > _WIDE else {"num_warps": 8}
    plain_columns = 0 if plain is None else plain.shape[1]
    gated_columns = columns - plain_columns
    _quantize_row[(rows,)](
        *_part(plain, quantized), *_part(gate_up, quantized), scales if plain_scales is None else plain_scales,
        quantized, scales, PLAIN_IS_FLOAT8=plain_scales is not None, PLAIN=plain_columns,
        PLAIN_TILES=_tiles(plain_columns), GATED=gated_columns, GATED_TILES=_tiles(gated_columns),
        **wide,
    )  # fmt: skip


def launch_norm(
    hidden_states: Tensor, shift: Tensor, scale: Tensor, eps: float, quantized: Tensor, scales: Tensor
) -> None:
    """Normalise, modulate and quantise contiguous rows; see `worker.model.fp8_rows.norm_rows`."""
    batch, tokens, columns = hidden_states.shape
    _norm_row[(batch * tokens,)](
        hidden_states, shift, scale, quantized, scales, tokens, eps, COLUMNS=columns, TILES=_tiles(columns), num_warps=4
    )


def _part(values: Tensor | None, instead: Tensor) -> tuple[Tensor, int]:
    """Return the tensor to read and its row stride; a missing part has no columns, so any tensor stands in for it."""
    return (instead, 0) if values is None else (values, values.stride(0))


def _tiles(columns: int) -> tuple[int, int]:
    """Return two powers of two that cover the columns: 16384 and 2048 for 18432."""
    # Triton's ranges are powers of two; a single one for 18432 columns would be 32768 and nearly half empty.
    first = 1 << max(columns.bit_length() - 1, 0)
    return first, triton.next_power_of_2(max(columns - first, 1))


@triton.jit
def _quantize_row(
    plain,
    plain_stride,
    gate_up,
    gate_stride,
    plain_scales,
    quantized,
    scales,
    PLAIN_IS_FLOAT8: tl.constexpr,
    PLAIN: tl.constexpr,
    PLAIN_TILES: tl.constexpr,
    GATED: tl.constexpr,
    GATED_TILES: tl.constexpr,
):
    """Quantise one row in a single read."""
    row = tl.program_id(0).to(tl.int64)
    largest = 0.0
    if PLAIN > 0:
        plain += row * plain_stride
        first = _load(plain, 0, PLAIN, PLAIN_TILES[0])
        second = _load(plain, PLAIN_TILES[0], PLAIN, PLAIN_TILES[1])
        plain_scale = tl.load(plain_scales + row) if PLAIN_IS_FLOAT8 else 1.0
        largest = plain_scale * tl.maximum(tl.max(tl.abs(first)), tl.max(tl.abs(second)))
    if GATED > 0:
        gate_up += row * gate_stride
        third = _gated(gate_up, 0, GATED, GATED_TILES[0])
        fourth = _gated(gate_up, GATED_TILES[0], GATED, GATED_TILES[1])
        largest = tl.maximum(largest, tl.maximum(tl.max(tl.abs(third)), tl.max(tl.abs(fourth))))
    # 448 is the largest float8 value. A row of zeros has no largest value to divide by, so its scale is tiny instead.
    scale = tl.maximum(largest / 448.0, 1e-12)
    if PLAIN_IS_FLOAT8:
        # The next power of two: its last 23 bits, the fraction, are zero.
        bits = (scale / plain_scale).to(tl.int32, bitcast=True)
        power = (bits + 0x7FFFFF) & ~0x7FFFFF
        scale = plain_scale * power.to(tl.float32, bitcast=True)
    tl.store(scales + row, scale)
    quantized += row * (PLAIN + GATED)
    # One division for the row: divisions take longer than this kernel's memory.
    inverse = 1.0 / scale
    if PLAIN > 0:
        # The inverse of a power of two has the opposite exponent, so it is exact, and so is the product.
        factor = ((254 << 23) - power).to(tl.float32, bitcast=True) if PLAIN_IS_FLOAT8 else inverse
        _store(quantized, first * factor, 0, PLAIN, PLAIN_TILES[0])
        _store(quantized, second * factor, PLAIN_TILES[0], PLAIN, PLAIN_TILES[1])
    if GATED > 0:
        _store(quantized + PLAIN, third * inverse, 0, GATED, GATED_TILES[0])
        _store(quantized + PLAIN, fourth * inverse, GATED_TILES[0], GATED, GATED_TILES[1])


@triton.jit
def _norm_row(
    hidden_states,
    shift,
    scale,
    quantized,
    scales,
    tokens,
    eps,
    COLUMNS: tl.constexpr,
    TILES: tl.constexpr,
):
    """Normalise, modulate and quantise one row."""
    row = tl.program_id(0).to(tl.int64)
    hidden_states += row * COLUMNS
    first = _load(hidden_states, 0, COLUMNS, TILES[0])
    second = _load(hidden_states, TILES[0], COLUMNS, TILES[1])
    mean = (tl.sum(first) + tl.sum(second)) / COLUMNS
    first = _centred(first, mean, 0, COLUMNS, TILES[0])
    second = _centred(second, mean, TILES[0], COLUMNS, TILES[1])
    # Both passes over the row read registers: the row is loaded from memory only once.
    inverse = tl.rsqrt((tl.sum(first * first) + tl.sum(second * second)) / COLUMNS + eps)
    shift += row // tokens * COLUMNS
    scale += row // tokens * COLUMNS
    first = _modulated(first * inverse, shift, scale, 0, COLUMNS, TILES[0])
    second = _modulated(second * inverse, shift, scale, TILES[0], COLUMNS, TILES[1])
    largest = tl.maximum(tl.max(tl.abs(first)), tl.max(tl.abs(second)))
    unit = tl.maximum(largest / 448.0, 1e-12)
    tl.store(scales + row, unit)
    quantized += row * COLUMNS
    _store(quantized, first * (1.0 / unit), 0, COLUMNS, TILES[0])
    _store(quantized, second * (1.0 / unit), TILES[0], COLUMNS, TILES[1])


@triton.jit
def _centred(value, mean, start, COLUMNS: tl.constexpr, TILE: tl.constexpr):
    return tl.where(start + tl.arange(0, TILE) < COLUMNS, value - mean, 0.0)


@triton.jit
def _modulated(value, shift, scale, start, COLUMNS: tl.constexpr, TILE: tl.constexpr):
    return (1 + _load(scale, start, COLUMNS, TILE)) * value + _load(shift, start, COLUMNS, TILE)


@triton.jit
def _load(values, start, COLUMNS: tl.constexpr, TILE: tl.constexpr):
    column = start + tl.arange(0, TILE)
    return tl.load(values + column, mask=column < COLUMNS, other=0.0).to(tl.float32)


@triton.jit
def _gated(gate_up, start, COLUMNS: tl.constexpr, TILE: tl.constexpr):
    gate = _load(gate_up, start, COLUMNS, TILE)
    up = _load(gate_up + COLUMNS, start, COLUMNS, TILE)
    # A fast division is exact enough for float8. With a full one, this would take longer than the memory.
    return libdevice.fast_dividef(gate, 1.0 + tl.exp(-gate)) * up


@triton.jit
def _store(quantized, value, start, COLUMNS: tl.constexpr, TILE: tl.constexpr):
    column = start + tl.arange(0, TILE)
    # A row's largest value, divided by its scale, may be a little above 448; it is rounded to that.
    tl.store(quantized + column, value.to(tl.float8e4nv), mask=column < COLUMNS)
