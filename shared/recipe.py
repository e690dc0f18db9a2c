"""Write an item as the fields of a request that renders it again."""

from __future__ import annotations

from typing import Any

from shared.job import AdapterRef, ItemSpec
from shared.request import REFERENCE_FIELDS


def request_fields(spec: ItemSpec) -> dict[str, Any]:
    """Return an item's values by the names of a request: those of a prompt, then those of the request itself.

    Sizes, seed and trigger words are those that were resolved, so a request with them gives the same item while the
    files of its adapters are the same. Reference images are named as uploads, which the service that accepted them
    keeps.
    """
    return {
        "prompt": spec.prompt,
        **{REFERENCE_FIELDS[ref.slot][0]: f"upload:{ref.sha256}" for ref in spec.references},
        "neg": spec.neg,
        "width": spec.width,
        "height": spec.height,
        "seed": spec.seed,
        **({"sigmas": list(spec.sigmas)} if spec.sigmas else {"sample_steps": spec.num_inference_steps}),
        "guidance_scale": spec.guidance_scale,
        "model": spec.model,
        "loras": [_lora(ref) for ref in spec.adapters],
        "engine": spec.engine,
        "adapter_mode": spec.adapter_mode,
        "output_format": spec.output_format,
    }


def _lora(ref: AdapterRef) -> dict[str, Any]:
    fields = {"path": ref.path, "network_multiplier": ref.multiplier}
    return {**fields, "ignore": list(ref.ignore)} if ref.ignore else fields
