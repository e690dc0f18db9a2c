"""Queries, keys and values of a block's attention, before their norm and their rotation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from torch import Tensor

from worker.model.linear_product import LinearProduct
from worker.model.rotary_norm import norm_and_rotate

#: Cosines and sines, each (tokens, channels), float32.
Angles = tuple[Tensor, Tensor]


class Heads(NamedTuple):
    """The heads of tokens that share their weights.

    Attributes:
        query, key, value: (batch, tokens, heads, channels).
        query_norm, key_norm: weights of the RMS norms, (channels,).
    """

    query: Tensor
    key: Tensor
    value: Tensor
    query_norm: Tensor
    key_norm: Tensor

    @classmethod
    def of(cls, qkv: Tensor, query_norm: Tensor, key_norm: Tensor) -> Heads:
        """Return the heads in (batch, tokens, channels of all queries, keys and values)."""
        query, key, value = qkv.view(*qkv.shape[:-1], 3, -1, len(query_norm)).unbind(-3)
        return cls(query, key, value, query_norm, key_norm)


def heads_to_lists(parts: Sequence[Heads]) -> list[list[Tensor]]:
    """Return a list for each field of `Heads`: custom operations take lists of tensors, and no lists of tuples."""
    return [list(values) for values in zip(*parts, strict=True)]


def heads_of_lists(*fields: list[Tensor]) -> list[Heads]:
    """Return the parts from which `heads_to_lists` has made these lists."""
    return [Heads(*values) for values in zip(*fields, strict=True)]


class HeadProjection(NamedTuple):
    """A product that gives queries, keys, values and the feed-forward's gate and up, before it is computed.

    Attributes:
        product: of weights in that order.
        qkv_rows: number of rows of the weights of queries, keys and values.
        query_norm, key_norm: as in `Heads`.
    """

    product: LinearProduct
    qkv_rows: int
    query_norm: Tensor
    key_norm: Tensor

    def heads(self) -> Heads:
        return Heads.of(self.product.compute(stop=self.qkv_rows), self.query_norm, self.key_norm)

    def gate_up(self) -> Tensor:
        """Return (batch, tokens, channels of gate and up), contiguous."""
        return self.product.compute(start=self.qkv_rows)

    def compute(self) -> tuple[Heads, Tensor]:
        """Return `heads` and `gate_up`, from one product."""
        projected = self.product.compute()
        qkv, gate_up = projected.tensor_split([self.qkv_rows], dim=-1)
        return Heads.of(qkv, self.query_norm, self.key_norm), gate_up.contiguous()


def join_heads(parts: Sequence[Heads], angles: Angles, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return the queries, keys and values of all parts as one sequence, normalised and rotated.

    Args:
        angles: of the whole sequence.
    """
    counts = [part.query.shape[1] for part in parts]
    cosines, sines = (torch.split(values, counts) for values in angles)
    of_parts = list(zip(parts, cosines, sines, strict=True))
    queries = [norm_and_rotate(part.query, part.query_norm, *turned, eps) for part, *turned in of_parts]
    keys = [norm_and_rotate(part.key, part.key_norm, *turned, eps) for part, *turned in of_parts]
    return _join(queries), _join(keys), _join([part.value for part in parts])


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Return the attention of (batch, tokens, heads, channels), shaped as the query."""
    attended: Tensor = dispatch_attention_fn(query, key, value)
    return attended


def _join(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
