"""The node that names an adapter for the node that renders."""

from __future__ import annotations

from typing import Any

#: The type of a list of adapters, which only these nodes exchange.
ADAPTERS = "FLUX2_QUEUE_ADAPTERS"

CATEGORY = "flux2-queue"

Adapter = dict[str, Any]


class AdapterNode:
    """Adds an adapter to those of the nodes before it."""

    CATEGORY = CATEGORY
    FUNCTION = "add"
    RETURN_TYPES = (ADAPTERS,)
    RETURN_NAMES = ("adapters",)
    DESCRIPTION = "A LoRA of the service, an upload, or an hf://, s3:// or https:// address."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "path": ("STRING", {"default": "", "tooltip": "As `flux2 adapters` lists it."}),
                "multiplier": ("FLOAT", {"default": 1.0, "min": -2.0, "max": 2.0, "step": 0.05}),
            },
            "optional": {"adapters": (ADAPTERS,)},
        }

    def add(self, path: str, multiplier: float, adapters: tuple[Adapter, ...] = ()) -> tuple[tuple[Adapter, ...]]:
        return ((*adapters, {"path": path.strip(), "network_multiplier": multiplier}),)
