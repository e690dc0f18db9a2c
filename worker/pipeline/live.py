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
from worker.lora.live import Beside, Live, live_update
from worker.lora.read import Adapter
from worker.pipeline.bfl import LayerPart
from worker.pipeline.exact import shared_product
from worker.pipeline.quantize import dense_weight


class LiveAdapters:
    """The adapters that run beside the layers of one transformer of diffusers'."""

    def __init__(self, transformer: nn.Module) -> None:
        self._transformer = transformer
        self._hooks: list[RemovableHandle] = []

    def __len__(self) -> int:
        """How many layers have an adapter beside them."""
        return len(self._hooks)

    def clear(self) -> None:
        """Take all adapters off."""
        while self._hooks:
            self._hooks.pop().remove()

    def add(self, adapter: Adapter, update: LayerUpdate, parts: Sequence[LayerPart]) -> None:
        """Run one update of an adapter beside the parameters `parts`, which hold its layer's rows."""
        shared = shared_product(self._transformer, parts[0].parameter)
        if shared is None:
            for part in parts:
                layer = self._layer(part)
                self._hook(layer, live_update(_beside(adapter, update, layer, part.origin.take)))
            return
        product, third = shared
        if len(parts) > 1:  # all three, as AI Toolkit's own layer has them
            self._hook(product, live_update(_beside(adapter, update, product, _all)))
        else:
            self._hook(product, _on_a_third(live_update(_beside(adapter, update, self._layer(parts[0]), _all)), third))

    def _layer(self, part: LayerPart) -> nn.Module:
        return self._transformer.get_submodule(part.parameter.removesuffix(".weight"))

    def _hook(self, layer: nn.Module, live: Live) -> None:
        @torch.no_grad()
        def hook(_: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
            return live(inputs[0], output)

        self._hooks.append(layer.register_forward_hook(hook))


def _beside(adapter: Adapter, update: LayerUpdate, layer: nn.Module, take: Callable[[Tensor], Tensor]) -> Beside:
    weight = partial(dense_weight, layer)
    return Beside(update, adapter.tensors, adapter.ref.multiplier, weight=weight, take=take)


def _all(tensor: Tensor) -> Tensor:
    return tensor


def _on_a_third(live: Live, third: int) -> Live:
    """Apply an update of query, key or value alone to what multiplies by all three at once."""

    def on_a_third(inputs: Tensor, output: Tensor) -> Tensor:
        thirds = list(output.chunk(3, dim=-1))
        thirds[third] = live(inputs, thirds[third])
        return torch.cat(thirds, dim=-1)

    return on_a_third
