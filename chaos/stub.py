"""The parts of a worker that a run replaces: a renderer that sleeps, a store that freezes, a ledger that records.

An item's prompt says which fault it causes, so a scenario needs no other channel to the process that it hits.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Literal

from PIL import Image

from chaos.history import History
from shared.job import (
    AdapterReport,
    ItemError,
    ItemResult,
    ItemSpec,
    PipelineReport,
    Progress,
    ReferenceReport,
    TokenReport,
)
from shared.ledger import Claim, Ledger
from shared.storage import ObjectStore
from worker.consumer.worker_state import WorkerState
from worker.step_previews import PreviewSink

_SIDE = 16

# Prompts that cause faults. The two that freeze affect an item's first claim only: otherwise no worker could finish it.
EXIT, CRASH, FAULT, HANG = "please exit", "please crash", "please fault", "please hang"
FREEZE_IN_UPLOAD, FREEZE_BEFORE_COMMIT = "please freeze in the upload", "please freeze before the commit"


@dataclass(frozen=True)
class StubImage:
    """See `worker.rendering.attempt.RenderedImage`."""

    image: Image.Image
    pipeline: PipelineReport
    timings: dict[str, float] = field(default_factory=dict)
    adapters: tuple[AdapterReport, ...] = ()
    tokens: TokenReport | None = None
    warnings: tuple[str, ...] = ()
    references: tuple[ReferenceReport, ...] = ()


class StubRenderer:
    """Sleeps `step_s` for each step, then returns the seed's picture."""

    def __init__(self, step_s: float) -> None:
        self.warm_key = "base"  # nothing is ever merged
        self.corrupted = 0
        self.broken = ""
        self._step_s = step_s

    def render(
        self,
        spec: ItemSpec,
        adapters: Sequence[Path],
        *,
        on_progress: Callable[[Progress], None],
        previews: PreviewSink | None = None,
    ) -> StubImage:
        for step in range(1, spec.num_inference_steps + 1):
            threading.Event().wait(self._step_s)
            self._cause_fault(spec.prompt)
            on_progress(Progress(stage="denoise", step=step, steps=spec.num_inference_steps))
        return StubImage(picture(spec.seed), _REPORT)

    def prepare(self, spec: ItemSpec, adapters: Sequence[Path], *, between: Callable[[], None]) -> None:
        """Prepare nothing: the stub needs no adapter."""

    def probe(self) -> str | None:
        return self.broken or None

    def _cause_fault(self, prompt: str) -> None:
        if prompt == EXIT:
            os._exit(1)
        # As a crash in a CUDA extension: no Python code runs after it.
        if prompt == CRASH:
            os.kill(os.getpid(), signal.SIGSEGV)
        if prompt == HANG:
            threading.Event().wait()
        if prompt == FAULT:
            self.broken = "CUDA error: an illegal memory access was encountered"
            raise RuntimeError(self.broken)


def picture(seed: int) -> Image.Image:
    """Return the only correct image of a seed."""
    return Image.frombytes("RGB", (_SIDE, _SIDE), sha256(str(seed).encode()).digest() * (_SIDE * _SIDE * 3 // 32))


class RecordingLedger(Ledger):
    """Records each claim and each commit, with its answer, in the history."""

    history: History

    def claim_next(
        self, pools: Sequence[str], *, slot: str, boot: str, warm: str, probed_outage: str = ""
    ) -> Claim | None:
        asked = time.monotonic()
        claim = super().claim_next(pools, slot=slot, boot=boot, warm=warm, probed_outage=probed_outage)
        if claim is not None:
            self.history.add(
                "claim", item=claim.item_id, fence=claim.fence, attempt=claim.attempt, slot=slot, asked=asked
            )
        return claim

    def commit(
        self, claim: Claim, outcome: ItemResult | ItemError | None, *, gpu_s: float | None = None
    ) -> Literal["committed", "repeated", "canceled", "stale"]:
        if claim.spec.prompt == FREEZE_BEFORE_COMMIT and claim.fence == 1:
            freeze(self.history, claim)
        answer = super().commit(claim, outcome, gpu_s=gpu_s)
        self.history.add("commit", item=claim.item_id, fence=claim.fence, answer=answer)
        return answer


@dataclass(frozen=True)
class FreezingStore:
    """The real store, except that a process whose item has that prompt freezes in its upload."""

    store: ObjectStore
    state: WorkerState
    history: History

    def put(self, key: str, data: bytes, *, content_type: str) -> None:
        for claim in self.state.claims:
            mine = key.startswith(f"results/{claim.job_id}/{claim.index}/1/")
            if mine and claim.spec.prompt == FREEZE_IN_UPLOAD and claim.fence == 1:
                freeze(self.history, claim)
        self.store.put(key, data, content_type=content_type)

    def url(self, key: str, *, expires_s: int) -> str:
        return self.store.url(key, expires_s=expires_s)

    def get(self, key: str) -> bytes:
        return self.store.get(key)

    def exists(self, key: str) -> bool:
        return self.store.exists(key)

    def delete_prefix(self, prefix: str) -> int:
        return self.store.delete_prefix(prefix)

    def check(self) -> None:
        self.store.check()


def freeze(history: History, claim: Claim) -> None:
    """Stop this process with SIGSTOP until another one sends SIGCONT."""
    history.add("froze", item=claim.item_id, fence=claim.fence)
    # Sent to this thread: after a signal to the process, another thread may stop first while this one continues.
    signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)
    history.add("thawed", item=claim.item_id, fence=claim.fence)


_REPORT = PipelineReport(
    engine="stub",
    precision="none",
    base_revision="none",
    device="none",
    adapter_mode="merged",
    change="none",
    versions={},
)
