"""Apply LoRAs beside weights that cannot take them: a float8 base would round them away.

AI Toolkit previews quantised jobs the same way: the adapter runs in float32 on each layer's input and its output, cast
to the layer's dtype, is added. It costs two thin matrix products a layer and step, and changing it costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

from shared.errors import AdapterRefused
from shared.job import AdapterRef, adapter_key
from worker.lora.read import Adapter
from worker.pipeline.cache import WarmPipeline
from worker.pipeline.components import Components


class LivePipeline(WarmPipeline):
    """A warm pipeline that never writes to a weight; `dirty` parameters are those of layers with an adapter beside."""

    def __init__(self, components: Components) -> None:
        super().__init__(components)
        self._hooks: list[RemovableHandle] = []
        # Hooks are called with the layers they sit on, which a product over shared weights would pass by.
        for block in components.transformer.transformer_blocks:
            block.attn.fused_projections = False

    def _read(self, ref: AdapterRef, path: Path) -> Adapter:
        adapter = super()._read(ref, path)
        for update in adapter.layout.updates:
            if update.kind != "lora":
                raise AdapterRefused(
                    f"{ref.path!r} is a {update.kind} at {update.layer}; "
                    f"a {self.components.precision} base takes LoRA only, a bf16 one every kind"
                )
        return adapter

    def _merge(self, adapter: Adapter) -> None:
        multiplier = adapter.ref.multiplier
        if multiplier == 0:
            return
        for update in adapter.layout.updates:
            roles, tensors = update.tensors, adapter.tensors
            down, up = (tensors[roles[role]].float() for role in ("down", "up"))
            scale = tensors[roles["alpha"]].item() / len(down) if "alpha" in roles else 1.0
            for name, rows in self._targets(update):
                layer = self.components.transformer.get_submodule(name.removesuffix(".weight"))
                live = beside(down, rows.take(up), scale=scale, multiplier=multiplier)
                self._hooks.append(layer.register_forward_hook(live))
                self._dirty.add(name)

    def _restore(self) -> bool:
        changed = bool(self._dirty)
        while self._hooks:
            self._hooks.pop().remove()
        self._dirty.clear()
        self._key, self._reports = adapter_key(()), ()
        return changed


def beside(
    down: Tensor, up: Tensor, *, scale: float, multiplier: float
) -> Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor]:
    """Return a forward hook that adds ``x @ down.T @ up.T * scale * multiplier`` to a linear layer's output.

    Args:
        down: (rank, in), float32.
        up: (out, rank), float32.
        scale: alpha / rank.
    """

    @torch.no_grad()
    def hook(layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        update = functional.linear(functional.linear(inputs[0].float(), down), up)
        return output + (update * scale * multiplier).to(output.dtype)

    return hook
