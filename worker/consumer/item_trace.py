"""The spans of one attempt at an item: its wait, its claim, the stages of its render, and its end."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from shared.errors import Flux2Error
from shared.job import ItemResult
from shared.ledger import Claim
from shared.tracing import Span, Tracer

# Names of stages whose reports have another one.
_NAMES: Final = {"adapter": "swap"}


class ItemTrace:
    """Records when each stage of an attempt begins and ends; the thread that owns the item's lease calls it.

    Args:
        claim_s: seconds that the claim took.
    """

    def __init__(self, tracer: Tracer, claim: Claim, *, slot: str, claim_s: float) -> None:
        now_s = time.time()
        # From durations alone: the clock of Redis may differ from this host's.
        queued_from_s = now_s - claim.queued_s
        # A claim waits for Redis while it is away, and then may get an item that was queued in the meantime.
        claimed_from_s = max(now_s - claim_s, queued_from_s)
        self._item = tracer.begin(
            "item",
            parent=claim.trace,
            kind="consumer",
            start_s=queued_from_s,
            request_id=claim.job_id,
            item=claim.item_id,
            attempt=claim.attempt,
            slot=slot,
            model=claim.spec.model,
            engine=claim.spec.engine,
            width=claim.spec.width,
            height=claim.spec.height,
            steps=claim.spec.num_inference_steps,
        )
        self._item.child("queue wait", start_s=queued_from_s).end(end_s=claimed_from_s)
        self._item.child("claim", start_s=claimed_from_s, why=claim.why).end(end_s=now_s)
        self._stage: tuple[str, Span] | None = None

    def enter(self, stage: str) -> None:
        """Begin a stage, which ends the one before; a repeat changes nothing."""
        if self._stage is None or self._stage[0] != stage:
            self.leave()
            self._stage = stage, self._item.child(_NAMES.get(stage, stage))

    def leave(self) -> None:
        """End the stage, if there is one."""
        if self._stage is not None:
            self._stage[1].end()
            self._stage = None

    @contextmanager
    def ending(self, outcome: ItemResult | Flux2Error) -> Iterator[None]:
        """Record the block that commits the outcome or releases the item, and end the trace of the attempt."""
        self.leave()
        if isinstance(outcome, Flux2Error):
            self._item.fail(outcome.code)
        span = self._item.child("commit" if isinstance(outcome, ItemResult) else "release")
        try:
            yield
        finally:
            span.end()
            self._item.end()
