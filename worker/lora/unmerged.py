"""Which layers an adapter runs beside, and how it is taken off again.

The weights are never written, so changing adapters costs nothing; each step pays for the products beside its layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from shared.adapters.kinds import LayerUpdate
from shared.adapters.names import WHOLE, Rows
from worker.checkpoint.tensor_names import LayerPart, Origin
from worker.lora.load import Adapter
from worker.lora.unmerged_update import Live, UnmergedUpdate, forward_patch
from worker.model.qfloat8 import dense_weight
from worker.model.rounding import fused_product


class UnmergedAdapters:
    """The adapters beside the layers of a transformer of diffusers', and of AI Toolkit's over the same weights."""

    def __init__(self, transformer: nn.Module) -> None:
        self._transformer = transformer
        self._toolkit: nn.Module | None = None
        self._hooks: list[RemovableHandle] = []

    def __len__(self) -> int:
        """How many layers have an adapter beside them."""
        return len(self._hooks)

    def also_patch(self, transformer: nn.Module) -> None:
        """Run adapters in AI Toolkit's transformer too, whose layers have BFL's names."""
        self._toolkit = transformer

    def clear(self) -> None:
        """Take all adapters off."""
        while self._hooks:
            self._hooks.pop().remove()

    def add(self, adapter: Adapter, update: LayerUpdate, parts: Sequence[LayerPart]) -> None:
        """Run one update of an adapter beside the parameters `parts`, which hold its layer's rows."""
        if self._toolkit is not None:
            self._run(adapter, update, self._toolkit.get_submodule(update.layer), update.rows)
        product = fused_product(self._transformer, parts[0].parameter)
        if product is not None:  # query, key and value at once, as AI Toolkit's own layer has them
            self._run(adapter, update, product, update.rows)
            return
        for part in parts:
            layer = self._transformer.get_submodule(part.parameter.removesuffix(".weight"))
            beside = _beside(adapter, update, partial(dense_weight, layer), part.origin.select_rows)
            self._hook(layer, forward_patch(beside))

    def _run(self, adapter: Adapter, update: LayerUpdate, layer: nn.Module, rows: Rows) -> None:
        """Run an update beside a layer of BFL's, or beside those of its rows that a diffusers name stands for."""
        weight = partial(dense_weight, layer)
        if rows == WHOLE:
            self._hook(layer, forward_patch(_beside(adapter, update, weight, _all)))
            return
        picked = Origin(update.layer, *rows)
        live = forward_patch(_beside(adapter, update, lambda: picked.select_rows(weight()), _all))
        self._hook(layer, _on_rows(live, picked))

    def _hook(self, layer: nn.Module, live: Live) -> None:
        @torch.no_grad()
        def hook(_: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
            return live(inputs[0], output)

        self._hooks.append(layer.register_forward_hook(hook))


def _beside(
    adapter: Adapter, update: LayerUpdate, weight: Callable[[], Tensor], take: Callable[[Tensor], Tensor]
) -> UnmergedUpdate:
    return UnmergedUpdate(update, adapter.tensors, adapter.ref.multiplier, weight=weight, take=take)


def _all(tensor: Tensor) -> Tensor:
    return tensor


def _on_rows(live: Live, picked: Origin) -> Live:
    """Apply an update of some of a layer's rows, in their order, and leave the others."""

    def on_rows(inputs: Tensor, output: Tensor) -> Tensor:
        chunks = list(output.chunk(picked.of, dim=-1))
        changed = live(inputs, torch.cat([chunks[part] for part in picked.parts], dim=-1))
        for part, chunk in zip(picked.parts, changed.chunk(len(picked.parts), dim=-1), strict=True):
            chunks[part] = chunk
        return torch.cat(chunks, dim=-1)

    return on_rows
