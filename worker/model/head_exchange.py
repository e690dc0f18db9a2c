"""Attention over tokens that several devices hold.

Each device projects its own tokens, attends with its share of the heads to the tokens of all devices, and receives the
attended heads of its own tokens back. Heads do not influence each other, so no bit depends on the number of devices.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from worker.model.heads import Angles, HeadProjection, Heads, attend, heads_of_lists, join_heads
from worker.model.linear_product import LinearProduct
from worker.model.token_split import SequenceSplit, TokenSplit


class HeadExchange(Protocol):
    """One device's side of the exchange; every device of the group calls the same methods in the same order."""

    def begin(self, split: TokenSplit) -> None:
        """Prepare for the passes of one split; processes without a part in them do so too, in groups of their own."""

    def attend(self, parts: list[Heads], angles: Angles, eps: float) -> Tensor:
        """Return the attention of this device's tokens over all tokens, (1, tokens, heads, channels).

        Args:
            parts: of this device's tokens: text and image in a double-stream block, both as one in a single-stream
                block.
        """

    def project_and_attend(self, projection: HeadProjection, angles: Angles, eps: float) -> tuple[Tensor, Tensor]:
        """Return the attention as `attend` does, and the gate and up of this device's tokens.

        On several devices, gate and up are computed while the heads travel.

        Args:
            projection: of this device's tokens in a single-stream block.
        """

    def gather_image(self, rows: Tensor) -> Tensor:
        """Return the image's tokens of all devices, (1, tokens, channels); `rows` are those of this device."""


#: The exchange of each group in this process, by the group's name.
EXCHANGES: dict[str, HeadExchange] = {}


# The compiler cannot trace an exchange, so the compiled code names it, as it names torch's own process groups.
@torch.library.custom_op("flux2::attend_in_group", mutates_args=())
def attend_in_group(
    queries: list[Tensor],
    keys: list[Tensor],
    values: list[Tensor],
    query_norms: list[Tensor],
    key_norms: list[Tensor],
    cosines: Tensor,
    sines: Tensor,
    eps: float,
    group: str,
) -> Tensor:
    """Call `HeadExchange.attend` of a group; the lists are those of `heads_to_lists`."""
    parts = heads_of_lists(queries, keys, values, query_norms, key_norms)
    return EXCHANGES[group].attend(parts, (cosines, sines), eps)


@attend_in_group.register_fake
def _(queries: list[Tensor], *others: Any) -> Tensor:
    first = queries[0]
    return first.new_empty((first.shape[0], sum(part.shape[1] for part in queries), *first.shape[2:]))


@torch.library.custom_op("flux2::project_and_attend_in_group", mutates_args=())
def project_and_attend_in_group(
    values: Tensor,
    weight: Tensor,
    dtype: torch.dtype,
    value_scales: Tensor | None,
    weight_scales: Tensor | None,
    qkv_rows: int,
    query_norm: Tensor,
    key_norm: Tensor,
    cosines: Tensor,
    sines: Tensor,
    eps: float,
    group: str,
) -> tuple[Tensor, Tensor]:
    """Call `HeadExchange.project_and_attend` of a group; see `LinearProduct` and `HeadProjection`.

    The compiler may order products and exchanges in any way that their results allow. As one operation they stay in
    the order that hides the exchange.
    """
    product = LinearProduct(values, weight, dtype, value_scales, weight_scales)
    projection = HeadProjection(product, qkv_rows, query_norm, key_norm)
    return EXCHANGES[group].project_and_attend(projection, (cosines, sines), eps)


@project_and_attend_in_group.register_fake
def _(
    values: Tensor,
    weight: Tensor,
    dtype: torch.dtype,
    _v: Any,
    _w: Any,
    qkv_rows: int,
    query_norm: Tensor,
    *others: Any,
) -> tuple[Tensor, Tensor]:
    batch, tokens, _ = values.shape
    width = len(query_norm)
    attended = values.new_empty((batch, tokens, qkv_rows // 3 // width, width), dtype=dtype)
    return attended, values.new_empty((batch, tokens, len(weight) - qkv_rows), dtype=dtype)


class LocalExchange:
    """The exchange of a device that renders alone."""

    def begin(self, split: TokenSplit) -> None:
        assert split.devices == 1

    def attend(self, parts: list[Heads], angles: Angles, eps: float) -> Tensor:
        return attend(*join_heads(parts, angles, eps))

    def project_and_attend(self, projection: HeadProjection, angles: Angles, eps: float) -> tuple[Tensor, Tensor]:
        # One product, as without a group: small images keep its bits, and the bits of a group are compared with it.
        heads, gate_up = projection.compute()
        return self.attend([heads], angles, eps), gate_up

    def gather_image(self, rows: Tensor) -> Tensor:
        return rows


class CollectiveExchange:
    """Exchanges heads through the collective calls of torch.distributed; for CPUs.

    Args:
        group: a process group.
    """

    def __init__(self, group: Any) -> None:
        self._group = group
        self._rank = dist.get_rank(group)
        self._split: TokenSplit

    def begin(self, split: TokenSplit) -> None:
        self._split = split

    def attend(self, parts: list[Heads], angles: Angles, eps: float) -> Tensor:
        sequence = self._split.double if len(parts) == 2 else self._split.single
        return self._attend_to(self._exchange(parts, angles, eps, sequence=sequence), sequence)

    def project_and_attend(self, projection: HeadProjection, angles: Angles, eps: float) -> tuple[Tensor, Tensor]:
        sequence = self._split.single
        received = self._exchange([projection.heads()], angles, eps, sequence=sequence)
        gate_up = projection.gate_up()
        return self._attend_to(received, sequence), gate_up

    def _exchange(self, parts: list[Heads], angles: Angles, eps: float, *, sequence: SequenceSplit) -> list[Tensor]:
        """Return this device's heads of all queries, keys and values."""
        return [self._own_heads(values[0], sequence)[None] for values in join_heads(parts, angles, eps)]

    def _attend_to(self, received: list[Tensor], sequence: SequenceSplit) -> Tensor:
        """Attend to all tokens with this device's heads; return all heads of this device's tokens."""
        query, key, value = received
        attended = attend(query, key, value)[0]
        heads = self._gather(attended, [sequence.length] * self._split.devices)
        rows = sequence.rows(self._rank, attended.device)
        return torch.cat([values[rows] for values in heads], dim=1)[None]

    def gather_image(self, rows: Tensor) -> Tensor:
        return torch.cat(self._gather(rows[0], [len(part) for part in self._split.single.image]))[None]

    def _own_heads(self, values: Tensor, sequence: SequenceSplit) -> Tensor:
        """Return this device's heads of all tokens, (tokens, its heads, channels), from all heads of its tokens."""
        devices = len(sequence.image)
        share = values.shape[1] // devices
        whole = values.new_empty(sequence.length, share, values.shape[2])
        parts = self._gather(values, [sequence.count(device) for device in range(devices)])
        for device, part in enumerate(parts):
            whole[sequence.rows(device, values.device)] = part[:, self._rank * share : (self._rank + 1) * share]
        return whole

    def _gather(self, rows: Tensor, counts: list[int]) -> list[Tensor]:
        """Return the rows of every device; `counts` are their numbers."""
        padded = rows.new_zeros(max(counts), *rows.shape[1:])
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded, group=self._group)
        return [part[:count] for part, count in zip(parts, counts, strict=True)]
