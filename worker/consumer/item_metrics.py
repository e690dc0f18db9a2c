"""Count what happens to items in this process, for `GET /metrics`."""

from __future__ import annotations

from typing import Final

from shared.errors import Flux2Error, ItemCanceled, RunError
from shared.job import ItemResult, ItemSpec
from shared.ledger import Claim
from shared.metrics import definitions as metrics
from shared.metrics.tally import PROCESS

# Stages of `ItemResult.timings` by metric; a metric's value is their sum.
_STAGES: Final = (
    (metrics.ENCODE_SECONDS, ("encode_prompt", "encode_references")),
    (metrics.DECODE_SECONDS, ("decode",)),
    (metrics.UPLOAD_SECONDS, ("upload",)),
    (metrics.FETCH_SECONDS, ("fetch",)),
)


def observe_claim(claim: Claim) -> None:
    """Observe for how long an item waited since it was last queued."""
    # Negative if Redis' clock went back.
    PROCESS.observe(metrics.WAIT_SECONDS, max(0.0, claim.queued_s), claim.spec.model, claim.spec.engine)


def count_failure(error: Exception) -> None:
    """Count an attempt that failed; one whose caller canceled it has not."""
    if not isinstance(error, ItemCanceled):
        code = error.code if isinstance(error, Flux2Error) else RunError.code
        PROCESS.count(metrics.ATTEMPT_FAILURES, code)


def observe_image(spec: ItemSpec, result: ItemResult) -> None:
    """Observe the stages of an image that was committed."""
    image, timings = (spec.model, spec.engine), result.timings
    for histogram, stages in _STAGES:
        present = [timings[stage] for stage in stages if stage in timings]
        if present:
            PROCESS.observe(histogram, sum(present), *image)
    if result.pipeline.change != "none" and "adapter" in timings:
        PROCESS.observe(metrics.SWAP_SECONDS, timings["adapter"], *image)
    if "denoise" in timings:
        steps = spec.num_inference_steps
        PROCESS.observe(metrics.STEP_SECONDS, timings["denoise"] / steps, *image, times=steps)
    if result.pipeline.drift is not None:
        PROCESS.observe(metrics.DRIFT_RATIO, result.pipeline.drift, spec.model)
