"""Attention in float8 by cuDNN, which torch brings; the package nvidia-cudnn-frontend describes the operation to it.

The package is optional, so this module is imported when the attention first runs.
"""

from __future__ import annotations

import math
from functools import cache, lru_cache
from typing import Any

import cudnn
import torch
from torch import Tensor

# Probabilities are at most 1. The largest power of two in float8 leaves the most room for small ones.
_PROBABILITY_SCALE = 256.0
# Images of as many sizes keep their plans; making one takes 50 ms.
_PLANS = 64


def attend(query: Tensor, key: Tensor, value: Tensor, scales: Tensor) -> Tensor:
    """Return the attention of heads in float8, shaped as the values and with their scale.

    Args:
        query, key, value: (batch, tokens, heads, channels), contiguous.
        scales: (4, 4), float32; in the first column of each row the scale of queries, of keys and of values, and the
            reciprocal of the last.
    """
    with torch.cuda.device(query.device):
        return _plan(query.device, tuple(query.shape)).run(query, key, value, scales)


class _Plan:
    """The attention of heads of one shape on one device.

    Args:
        shape: (batch, tokens, heads, channels).
    """

    def __init__(self, device: torch.device, shape: tuple[int, ...]) -> None:
        batch, tokens, heads, width = shape
        self._device = device
        self._handle = _handle(device)
        float8, float32 = cudnn.data_type.FP8_E4M3, cudnn.data_type.FLOAT
        graph = cudnn.pygraph(
            handle=self._handle, io_data_type=float8, intermediate_data_type=float32, compute_data_type=float32
        )
        # cuDNN's order of the dimensions is batch, heads, tokens, channels.
        dim, stride = (batch, heads, tokens, width), (tokens * heads * width, width, heads * width, 1)
        one = (1, 1, 1, 1)
        inputs = {name: graph.tensor(name=name, dim=dim, stride=stride, data_type=float8) for name in ("q", "k", "v")}
        # In the order of `attend`'s scales and `_probability_scales`.
        for name in ("descale_q", "descale_k", "descale_v", "scale_o", "descale_s", "scale_s"):
            inputs[name] = graph.tensor(name=name, dim=one, stride=one, data_type=float32)
        attended, _, *largest = graph.sdpa_fp8(
            **inputs, attn_scale=1 / math.sqrt(width), generate_stats=False, use_causal_mask=False
        )
        attended.set_output(True).set_dim(dim).set_stride(stride).set_data_type(float8)
        for value in largest:
            value.set_output(True).set_dim(one).set_stride(one).set_data_type(float32)
        graph.validate()
        graph.build_operation_graph()
        graph.create_execution_plans([cudnn.heur_mode.A, cudnn.heur_mode.FALLBACK])
        graph.check_support()
        graph.build_plans()
        self._graph = graph
        self._inputs = list(inputs.values())
        self._outputs = [attended, *largest]

    def run(self, query: Tensor, key: Tensor, value: Tensor, scales: Tensor) -> Tensor:
        """Queue the attention on the current stream."""
        attended = torch.empty_like(value)
        # cuDNN writes the largest probability and the largest result, which nobody reads.
        unread = torch.empty_like(scales)
        given = [query, key, value, *(scale[:1] for scale in scales), *_probability_scales(self._device)]
        written = [attended, unread[0, :1], unread[1, :1]]
        workspace = torch.empty(max(self._graph.get_workspace_size(), 1), dtype=torch.uint8, device=self._device)
        cudnn.set_stream(handle=self._handle, stream=torch.cuda.current_stream(self._device).cuda_stream)
        pack = dict(zip((*self._inputs, *self._outputs), (*given, *written), strict=True))
        self._graph.execute(pack, workspace, handle=self._handle)
        return attended


@lru_cache(maxsize=_PLANS)
def _plan(device: torch.device, shape: tuple[int, ...]) -> _Plan:
    return _Plan(device, shape)


@cache
def _handle(device: torch.device) -> Any:
    return cudnn.create_handle()


@cache
def _probability_scales(device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the factors that read and write probabilities."""
    reading, writing = (
        torch.full((1,), value, device=device) for value in (1 / _PROBABILITY_SCALE, _PROBABILITY_SCALE)
    )
    return reading, writing
