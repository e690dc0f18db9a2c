"""The result of an item that no renderer made, as a worker with the full-size model reports it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from shared.job import AdapterReport, ItemResult, PipelineReport
from shared.ledger import Claim

SHA256 = "0123456789abcdef" * 4


def describe_result(
    claim: Claim, *, timings: Mapping[str, float], change: Literal["none", "merged", "swapped"]
) -> ItemResult:
    """Describe an image of the claim's item; `timings` are the seconds of each stage."""
    return ItemResult(
        key=f"results/{claim.job_id}/{claim.index}/{claim.fence}/image.png",
        format="png",
        content_type="image/png",
        width=claim.spec.width,
        height=claim.spec.height,
        sha256=SHA256,
        size_bytes=1_482_133 + claim.index,
        timings=dict(timings),
        adapters=tuple(
            AdapterReport(
                path=ref.path,
                sha256=ref.sha256,
                multiplier=ref.multiplier,
                kind="lora",
                ranks=(16,),
                layers_touched=128,
                layers_total=160,
            )
            for ref in claim.spec.adapters
        ),
        pipeline=PipelineReport(
            engine=claim.spec.engine,
            precision="bf16",
            base_revision=SHA256[:40],
            device="NVIDIA H200",
            adapter_mode="merged",
            change=change,
            versions={"torch": "2.9.1+cu128", "diffusers": "0.36.0", "transformers": "4.57.3"},
        ),
    )
