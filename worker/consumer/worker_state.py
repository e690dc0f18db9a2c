"""The state of one worker process, which several threads read and write."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal

from shared.job import ItemSpec
from shared.ledger import Claim
from shared.ledger.usage_rows import BASE, name_adapters
from shared.metrics.definitions import CORRUPTED_PARAMETERS
from shared.metrics.tally import PROCESS

#: Whether the slot may take work; a slot whose device keeps failing is `faulty`.
Condition = Literal["ready", "faulty"]


@dataclass(frozen=True)
class WorkerSnapshot:
    """The state at one moment.

    Attributes:
        claims: items that this process owns, oldest first: at most one being stored and one rendering.
        rendering: the claim whose item renders now, else None.
        last_spec: of the last item that was claimed; None before the first.
        draining: whether the process is stopping; it then claims nothing more.
        storage_failed: whether an item could not be stored and the store has not answered since.
        probed_outage: id of the last reported outage after which the storage answered this worker; empty for none.
        wakeups: number of wake-ups that Celery delivered.
        answering: whether a wake-up is being handled; that takes minutes while a store does not answer.
        corrupted: number of restored weights whose bits differ from the loaded ones; see `ItemRenderer.corrupted`.
    """

    condition: Condition = "ready"
    claims: tuple[Claim, ...] = ()
    rendering: Claim | None = None
    last_spec: ItemSpec | None = None
    draining: bool = False
    storage_failed: bool = False
    probed_outage: str = ""
    wakeups: int = 0
    answering: bool = False
    corrupted: int = 0

    def report(self, *, merged_key: str) -> dict[str, str]:
        """Return the changing fields of a heartbeat, as the ledger stores them.

        Args:
            merged_key: `ItemRenderer.warm_key`, read after this snapshot was taken.
        """
        state = "draining" if self.draining else "busy" if self.claims else self.condition
        return {
            "state": state,
            "item": self.claims[-1].item_id if self.claims else "",
            # From its claim on, an item's adapters count as warm here, so that other slots leave them to this one.
            # After rendering, only merged adapters count: a refused adapter is warm nowhere.
            "warm": self.rendering.spec.adapter_key if self.rendering else merged_key,
            "adapters": self._name_adapters(merged_key),
            # The field keeps its first name: workers and APIs of several versions share one Redis.
            "base_drift": str(self.corrupted),
        }

    def _name_adapters(self, merged_key: str) -> str:
        """Return the names of the warm adapters, for people; empty if they are unknown."""
        # Two items with one key may name the same file differently.
        if self.last_spec is not None and (self.rendering or self.last_spec.adapter_key == merged_key):
            return name_adapters(self.last_spec.adapters)
        return BASE if merged_key == BASE else ""


class WorkerState:
    """The facts about this process that change while it runs.

    Any thread may call any method; a signal handler may call only `start_draining`, which takes no lock.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._now = WorkerSnapshot()
        # Set by one assignment, without the lock: SIGTERM's handler may interrupt a thread that holds the lock.
        self._draining = False
        self._announce: Callable[[], None] = lambda: None

    def snapshot(self) -> WorkerSnapshot:
        """Return the state as it is now."""
        with self._lock:
            return replace(self._now, draining=self._draining)

    @property
    def claims(self) -> tuple[Claim, ...]:
        """Items that this process owns now, oldest first."""
        return self.snapshot().claims

    @property
    def is_draining(self) -> bool:
        """Whether the process is stopping; it then claims nothing more."""
        return self._draining

    @property
    def storage_failed(self) -> bool:
        """Whether an item could not be stored and the store has not answered since."""
        return self.snapshot().storage_failed

    @property
    def probed_outage(self) -> str:
        """Id of the last reported outage after which the storage answered this worker; empty for none."""
        return self.snapshot().probed_outage

    def on_change(self, announce: Callable[[], None]) -> None:
        """Call `announce` after each change of the claims or the condition, in the thread that made the change."""
        self._announce = announce

    def add_claim(self, claim: Claim) -> None:
        """Record an item that this process has claimed and will render."""
        with self._lock:
            self._now = replace(self._now, claims=(*self._now.claims, claim), rendering=claim, last_spec=claim.spec)
        self._announce()

    def finish_rendering(self, claim: Claim) -> None:
        """Record that an item has rendered; it stays among the claims until it is stored."""
        with self._lock:
            self._now = replace(self._now, rendering=self._rendering_without(claim))

    def remove_claim(self, claim: Claim) -> None:
        """Record that this process no longer owns an item."""
        with self._lock:
            left = tuple(other for other in self._now.claims if other != claim)
            self._now = replace(self._now, claims=left, rendering=self._rendering_without(claim))
        self._announce()

    def change_condition(self, condition: Condition) -> bool:
        """Set the condition; return whether it changed."""
        with self._lock:
            changed = self._now.condition != condition
            self._now = replace(self._now, condition=condition)
        if changed:
            self._announce()
        return changed

    def start_draining(self) -> None:
        """Claim nothing more from now on."""
        # Not announced: a signal handler must not wait for Redis, so the next heartbeat reports it.
        self._draining = True

    def record_storage_failure(self) -> None:
        """Remember that an item could not be stored."""
        self._update(storage_failed=True)

    def record_storage_recovery(self) -> None:
        """Remember that the store answers again."""
        self._update(storage_failed=False)

    def record_probed_outage(self, outage_id: str) -> None:
        """Remember that the storage answered this worker after another one had reported an outage."""
        self._update(probed_outage=outage_id)

    def record_corrupted(self, parameters: int) -> None:
        """Set the number of restored weights that differ from the loaded ones; the next heartbeat reports it."""
        with self._lock:
            new = parameters - self._now.corrupted
            self._now = replace(self._now, corrupted=parameters)
        if new > 0:
            PROCESS.count(CORRUPTED_PARAMETERS, by=new)

    @contextmanager
    def handling_wakeup(self) -> Iterator[None]:
        """Count a wake-up, and report it as being handled inside the `with` block."""
        with self._lock:
            self._now = replace(self._now, wakeups=self._now.wakeups + 1, answering=True)
        try:
            yield
        finally:
            self._update(answering=False)

    def _rendering_without(self, claim: Claim) -> Claim | None:
        return None if self._now.rendering == claim else self._now.rendering

    def _update(self, **changes: bool | int | str) -> None:
        with self._lock:
            self._now = replace(self._now, **changes)  # type: ignore[arg-type]  # each caller names its own field
