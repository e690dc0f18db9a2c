"""A slot of the simulation: it calls the ledger as a worker does, and passes virtual time instead of rendering."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.rendered_result import describe_result
from benchmarks.scheduling.history import History
from benchmarks.scheduling.service_times import ServiceTimes, Stages, Swap
from benchmarks.scheduling.timeline import Action, Timeline
from shared.job import FEATURES, ItemSpec, Progress, pools
from shared.ledger import Claim, Ledger
from shared.ledger.workers import DRAINING

MODEL = "flux2"
POOLS = pools(MODEL, ["exact"], FEATURES)

# As in the worker: see `worker.consumer.heartbeat`, `QueueSettings.renew_s` and `worker.consumer.background`.
_BEAT_S, _STEP_TO_PREPARE = 3.0, 2
# Between a claim and the heartbeat that reports it, other slots claim.
_CALL_S = 0.002
_GIB = 80


class SimulatedSlot:
    """One slot from its first heartbeat to its end: claims, prepares, renders, stores, commits.

    Args:
        on_idle: called when a claim found nothing; the slot then waits until `claim` is called again.
        first_share: the part of its first item that is left to render, so that a fleet begins as if it ran already.
    """

    def __init__(
        self,
        name: str,
        *,
        ledger: Ledger,
        timeline: Timeline,
        times: ServiceTimes,
        history: History,
        on_idle: Callable[[SimulatedSlot], None],
        first_share: float = 1.0,
    ) -> None:
        self.name = name
        self._ledger = ledger
        self._timeline = timeline
        self._times = times
        self._history = history
        self._on_idle = on_idle
        self._first_share = first_share
        # At most one that is stored and one that renders, oldest first.
        self._claims: list[Claim] = []
        self._rendering: Claim | None = None
        self._prepared: ItemSpec | None = None
        # Adapters of the last image, and those that the slot has merged or began to merge since.
        self._rendered = self._merged = "base"
        self._stored_s = 0.0
        self._is_draining = False
        self._is_gone = False

    @property
    def is_gone(self) -> bool:
        """Whether the slot has ended."""
        return self._is_gone

    def start(self) -> None:
        """Report the slot as alive and claim."""
        self._beat_again()
        self.claim()

    def kill(self) -> None:
        """End without a word: the leases of its items expire, and the ledger forgets the slot."""
        self._is_gone = True

    def drain(self) -> None:
        """Claim nothing more, and end when the items that it has are stored."""
        self._is_draining = True
        self._end_if_drained()

    def claim(self) -> None:
        """Claim the next item and begin to render it."""
        if self._is_draining or self._is_gone:
            return
        claim = self._ledger.claim_next(POOLS, slot=self.name, boot=self.name, warm=self._merged)
        if claim is None:
            self._on_idle(self)
            return
        swap = self._swap_to(claim.spec.adapter_key)
        self._history[claim.item_id].start(self._timeline.now_s(), has_swap=swap != "none")
        self._claims.append(claim)
        self._rendering = claim
        stages = self._times.stages(claim.item_id, claim.spec, swap=swap, is_prepared=self._prepared == claim.spec)
        self._prepared = None
        self._after(_CALL_S, self._beat)
        share, self._first_share = self._first_share, 1.0
        steps = max(claim.spec.num_inference_steps, 1)
        before_s = stages.encode_s + stages.swap_s + stages.denoise_s * _STEP_TO_PREPARE / steps
        self._after(share * before_s, self._prepare_next)
        self._after(share * stages.render_s, lambda: self._finish_rendering(claim, stages))

    def _swap_to(self, adapter_key: str) -> Swap:
        if adapter_key != self._merged:
            return "whole"
        return "none" if self._merged == self._rendered else "begun"

    def _prepare_next(self) -> None:
        if self._rendering is None or self._is_draining:
            return
        warm = self._rendering.spec.adapter_key
        self._prepared = self._ledger.peek_next(POOLS, slot=self.name, warm=warm)

    def _finish_rendering(self, claim: Claim, stages: Stages) -> None:
        self._rendered = self._merged = claim.spec.adapter_key
        if self._prepared is not None:
            # As `Renderer` does during the last step: the next claim prefers these adapters.
            self._merged = self._prepared.adapter_key
        self._rendering = None
        # One image is stored at a time.
        waits_s = max(0.0, self._stored_s - self._timeline.now_s())
        self._stored_s = self._timeline.now_s() + waits_s + stages.store_s
        self._after(waits_s + stages.store_s, lambda: self._commit(claim, stages))
        self._after(waits_s, self.claim)

    def _commit(self, claim: Claim, stages: Stages) -> None:
        timings = {
            "encode_prompt": stages.encode_s,
            "adapter": stages.swap_s,
            "denoise": stages.denoise_s,
            "decode": stages.decode_s,
            "encode_image": stages.store_s / 2,
            "upload": stages.store_s / 2,
        }
        result = describe_result(claim, timings=timings, change="swapped" if stages.swap_s else "none")
        if self._ledger.commit(claim, result, gpu_s=stages.render_s) == "committed":
            self._history.end(claim.item_id, self._timeline.now_s())
        self._claims.remove(claim)
        self._beat()
        self._end_if_drained()

    def _end_if_drained(self) -> None:
        if self._is_draining and not self._is_gone and not self._claims:
            self._ledger.workers.remove(self.name)
            self._is_gone = True

    def _beat_again(self) -> None:
        self._beat()
        for claim in self._claims:
            steps = claim.spec.num_inference_steps
            self._ledger.renew(claim, Progress(stage="denoise", step=min(2, steps), steps=steps))
        self._after(_BEAT_S, self._beat_again)

    def _beat(self) -> None:
        report = {
            "model": MODEL,
            "state": DRAINING if self._is_draining else "busy" if self._claims else "ready",
            "device": "cuda:0",
            "revision": "r",
            "precision": "bf16",
            "engines": "exact",
            "features": ",".join(FEATURES),
            "memory_bytes": str(_GIB * 2**30),
            "warm": self._rendering.spec.adapter_key if self._rendering else self._merged,
            "item": self._claims[-1].item_id if self._claims else "",
            "base_drift": "0",
        }
        self._ledger.workers.beat(self.name, report)

    def _after(self, delay_s: float, action: Action) -> None:
        self._timeline.after(delay_s, lambda: None if self._is_gone else action())
