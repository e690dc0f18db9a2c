"""Attention of the engine `fast` in float8: queries, keys, values, probabilities and results.

On a Hopper GPU, cuDNN takes 0.7 of the time of attention in bfloat16 for it. All queries of a pass share one scale, all
keys another and all values a third. That costs no accuracy: float8 is as exact for small values as for large ones.
The scales of queries and keys follow from the weights of their norms: normalised channels have a root mean square of 1,
so a head is no longer than ``sqrt(channels) * max(weight)``, and rotating it changes no length. Results have the scale
of the values, whose average they are, and go as they are into the layer that follows.

Source:
    `sdpa_fp8` in https://docs.nvidia.com/deeplearning/cudnn/frontend/latest/operations/Attention.html
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Sequence
from functools import cache
from itertools import accumulate

import torch
from torch import Tensor

from worker.kernels.distance import rel_l2
from worker.model.fp8_rows import QuantizedRows, round_to_float8, scale_for
from worker.model.heads import Angles, Heads, attend, heads_of_lists, heads_to_lists, join_heads
from worker.model.qfloat8 import FLOAT8
from worker.model.rotary_norm import HEAD_WIDTH, contiguous_channels, norm_kernel_runs

_HOPPER = (9, 0)
# Of results in float8 from those in bfloat16, relative to the length of the latter; 0.06 was measured.
_LARGEST_DISTANCE = 0.1


def attend_in_float8(parts: Sequence[Heads], angles: Angles, eps: float) -> QuantizedRows:
    """Return the attention of all parts as one sequence, (batch, tokens, heads * channels).

    Args:
        parts: one or two.
        angles: of the whole sequence.
    """
    return QuantizedRows(*_attend(*heads_to_lists(parts), *angles, eps))


# The compiler cannot trace cuDNN.
@torch.library.custom_op("flux2::attend_in_float8", mutates_args=())
def _attend(
    queries: list[Tensor],
    keys: list[Tensor],
    values: list[Tensor],
    query_norms: list[Tensor],
    key_norms: list[Tensor],
    cosines: Tensor,
    sines: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """Return the fields of `QuantizedRows`; the lists are those of `heads_to_lists`."""
    parts = heads_of_lists(queries, keys, values, query_norms, key_norms)
    if not cosines.is_cuda:
        return _attend_on_host(parts, (cosines, sines), eps)
    return _attend_on_gpu(parts, (cosines, sines), eps)


@_attend.register_fake
def _(queries: list[Tensor], *others: object) -> tuple[Tensor, Tensor]:
    batch, _, heads, width = queries[0].shape
    tokens = sum(part.shape[1] for part in queries)
    rows = queries[0].new_empty(batch, tokens, heads * width, dtype=FLOAT8)
    return rows, rows.new_empty(batch, tokens, 1, dtype=torch.float32)


def _attend_on_gpu(parts: Sequence[Heads], angles: Angles, eps: float) -> QuantizedRows:
    """Attend with this project's kernels and cuDNN."""
    from worker.kernels import cudnn_attention
    from worker.kernels.fp8_heads_kernel import quantize_values, turn_and_quantize

    first, last = parts[0], parts[-1]
    counts = [part.query.shape[1] for part in parts]
    batch, _, *heads = first.query.shape
    whole = (batch, sum(counts), *heads)
    query, key, value = (first.query.new_empty(whole, dtype=FLOAT8) for _ in range(3))
    rows = first.query.new_empty(*whole[:2], 1, dtype=torch.float32)
    # Each scale has 16 bytes to itself: cuDNN reads from addresses that are multiples of 16.
    scales = rows.new_empty(4, 4)
    largest = rows.new_zeros(1)
    all_norms = (first.query_norm, first.key_norm, last.query_norm, last.key_norm)
    with torch.cuda.device(rows.device):
        # All parts' values have one scale, so the largest of all must be known before any is quantised.
        starts = list(accumulate(counts, initial=0))[:-1]
        readable = [
            (contiguous_channels(part.query), contiguous_channels(part.key), contiguous_channels(part.value))
            for part in parts
        ]
        for part, given, start in zip(parts, readable, starts, strict=True):
            turn_and_quantize(
                given,
                angles,
                eps,
                norms=(part.query_norm, part.key_norm),
                all_norms=all_norms,
                start=start,
                to=(query, key),
                scales=scales,
                largest=largest,
            )
        for given, start in zip(readable, starts, strict=True):
            quantize_values(given[2], largest=largest, start=start, to=value, scales=scales, rows=rows)
        attended = cudnn_attention.attend(query, key, value, scales)
    return QuantizedRows(attended.flatten(2, 3), rows)


def _attend_on_host(parts: Sequence[Heads], angles: Angles, eps: float) -> QuantizedRows:
    """Attend with torch's operations; probabilities stay in float32."""
    query, key, value = (values.float() for values in join_heads(parts, angles, eps))
    longest = math.sqrt(query.shape[-1])
    of_query = scale_for(longest * torch.stack([part.query_norm for part in parts]).float().abs().amax())
    of_key = scale_for(longest * torch.stack([part.key_norm for part in parts]).float().abs().amax())
    of_value = scale_for(value.abs().amax())
    query, key, value = (
        round_to_float8(values, scale).float() * scale
        for values, scale in ((query, of_query), (key, of_key), (value, of_value))
    )
    attended = round_to_float8(attend(query, key, value), of_value).flatten(2, 3)
    return QuantizedRows(attended, of_value.expand(*attended.shape[:2], 1).contiguous())


def multiplies_float8_fast(device: torch.device) -> bool:
    """Whether a device is a GPU for whose generation cuDNN has attention in float8."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= _HOPPER


@cache
def float8_attention_lacks(device: torch.device, *, heads: int, width: int) -> str | None:
    """Return what attention in float8 lacks on a device, or None if it runs there."""
    if device.type == "cpu":
        return None
    if not multiplies_float8_fast(device):
        return "a GPU of the Hopper generation or a later one"
    if not norm_kernel_runs(device, heads=heads, width=width):
        return f"Triton, and heads of {HEAD_WIDTH} channels"
    if importlib.util.find_spec("cudnn") is None:
        return "the package nvidia-cudnn-frontend"
    # Measured, not assumed: another version of cuDNN may refuse, or scale in another way.
    try:
        distance = _distance(device, heads=heads)
    except Exception as error:  # noqa: BLE001 - cuDNN's errors have no common class
        return f"a cuDNN that computes it ({error})"
    # Not `>`, which is false for NaN.
    if not distance <= _LARGEST_DISTANCE:
        return f"a cuDNN that computes it well: results differ by {distance:.2f} of their length"
    return None


def _distance(device: torch.device, *, heads: int) -> float:
    """Return the distance of random heads' attention from that in bfloat16, relative to the length of the latter."""
    # A fixed seed: the comparison must not depend on chance.
    random = torch.Generator(device).manual_seed(1)

    def draw(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.bfloat16, device=device).normal_(generator=random)

    angles = draw(512, HEAD_WIDTH).float()
    weight = torch.ones(HEAD_WIDTH, dtype=torch.bfloat16, device=device)
    query, key, value = (draw(1, 512, heads, HEAD_WIDTH) for _ in range(3))
    parts = [Heads(query, key, value, weight, weight)]
    turns = angles.cos(), angles.sin()
    rows = attend_in_float8(parts, turns, 1e-6)
    return rel_l2(rows.values.float() * rows.scales, attend(*join_heads(parts, turns, 1e-6)).flatten(2, 3).float())
