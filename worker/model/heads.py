"""Queries, keys and values of a block's attention, before their norm and their rotation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from torch import Tensor

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
