"""Attach adapters to layers as forward hooks, and detach them again, without writing a weight.

A swap of unmerged adapters takes no time, but each step computes their products; `worker.lora.unmerged_update` has the
arithmetic.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from shared.adapters.kinds import LayerUpdate
from shared.layer_names import WHOLE
from worker.checkpoint.tensor_names import Origin, WrittenRows
from worker.lora.load import Adapter
from worker.lora.merge import scales_columns
from worker.lora.unmerged_update import ForwardPatch, UnmergedUpdate, UpdatedRows, forward_patch
from worker.model.qfloat8 import dense_weight
from worker.model.rounding import fused_product


def _unmerged(
    adapter: Adapter, update: LayerUpdate, rows: UpdatedRows, *, others: Sequence[UpdatedRows] = ()
) -> UnmergedUpdate:
    return UnmergedUpdate(update, adapter.tensors, adapter.ref.multiplier, rows, others)


class UnmergedAdapters:
    """The adapters that run unmerged in a transformer.

    Args:
        transformer: diffusers' Flux2Transformer2DModel.
    """

    def __init__(self, transformer: nn.Module) -> None:
        self._transformer = transformer
        self._toolkit: nn.Module | None = None
        self._hooks: list[RemovableHandle] = []  # run in this order: each receives the output of the hook before it

    def __len__(self) -> int:
        """Return the number of patched layers; 0 if no adapter runs unmerged."""
        return len(self._hooks)

    def add_toolkit_transformer(self, transformer: nn.Module) -> None:
        """Attach later adapters to AI Toolkit's transformer too; its layers have BFL's names."""
        self._toolkit = transformer

    def clear(self) -> None:
        """Detach all adapters."""
        while self._hooks:
            self._hooks.pop().remove()

    def add(self, adapter: Adapter, update: LayerUpdate, *, targets: Sequence[WrittenRows]) -> None:
        """Attach one update of an adapter to the layers whose parameters are its targets."""
        if self._toolkit is not None:
            self._patch_bfl_layer(adapter, update, layer=self._toolkit.get_submodule(update.layer))
        # Query, key and value are one product, as in AI Toolkit's own layer.
        product = fused_product(self._transformer, targets[0].parameter)
        if product is not None:
            self._patch_bfl_layer(adapter, update, layer=product)
            return
        for target in targets:
            layer = self._transformer.get_submodule(target.parameter.removesuffix(".weight"))
            if target.part != WHOLE:
                self._patch_bfl_layer(adapter, update, layer=layer)
                continue
            others = [self._rows(other) for other in targets if other is not target]
            needed = others if scales_columns(update, adapter.tensors) else ()
            self._hook(layer, forward_patch(_unmerged(adapter, update, self._rows(target), others=needed)))

    def _rows(self, target: WrittenRows) -> UpdatedRows:
        """Return the rows of a whole parameter."""
        layer = self._transformer.get_submodule(target.parameter.removesuffix(".weight"))
        return UpdatedRows(partial(dense_weight, layer), target.source.select_rows)

    def _patch_bfl_layer(self, adapter: Adapter, update: LayerUpdate, *, layer: nn.Module) -> None:
        """Attach an update to a layer that has BFL's rows: to all of them, or to those of a diffusers parameter."""
        weight = partial(dense_weight, layer)
        if update.rows == WHOLE:
            self._hook(layer, forward_patch(_unmerged(adapter, update, UpdatedRows(weight))))
            return
        picked = Origin(update.layer, *update.rows)
        rows = UpdatedRows(lambda: picked.select_rows(weight()))
        patch = forward_patch(_unmerged(adapter, update, rows))
        self._hook(layer, _patch_rows(patch, picked))

    def _hook(self, layer: nn.Module, patch: ForwardPatch) -> None:
        @torch.no_grad()
        def hook(_: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
            return patch(inputs[0], output)

        self._hooks.append(layer.register_forward_hook(hook))


def _patch_rows(patch: ForwardPatch, picked: Origin) -> ForwardPatch:
    """Return a patch that changes some of a layer's rows, in their order, and leaves the others."""

    def patch_rows(inputs: Tensor, output: Tensor) -> Tensor:
        chunks = list(output.chunk(picked.part_count, dim=-1))
        changed = patch(inputs, torch.cat([chunks[part] for part in picked.parts], dim=-1))
        for part, chunk in zip(picked.parts, changed.chunk(len(picked.parts), dim=-1), strict=True):
            chunks[part] = chunk
        return torch.cat(chunks, dim=-1)

    return patch_rows
