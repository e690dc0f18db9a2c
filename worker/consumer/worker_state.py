"""State of one worker process that several threads read and write."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal

from shared.ledger import Claim

#: Whether the slot may take work; a slot whose device keeps failing is `faulty`.
Condition = Literal["ready", "faulty"]


@dataclass(frozen=True)
class WorkerSnapshot:
    """The state at one moment.

    Attributes:
        claims: items that this process owns, oldest first: one that is being stored, one that renders.
        rendering: the newest of them until it has rendered, else None.
        draining: whether the process has been asked to stop; it claims nothing more.
        storage_failed: whether an item could not be stored, and the store has not answered since.
        wakeups: count of wake-ups that Celery delivered.
        answering: whether one of them is being handled; that takes minutes while a store does not answer.
        corrupted: restored weights whose bits are not those that were loaded; see `ItemRenderer.corrupted`.
    """

    condition: Condition = "ready"
    claims: tuple[Claim, ...] = ()
    rendering: Claim | None = None
    draining: bool = False
    storage_failed: bool = False
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
            # An item's adapters count as this slot's from its claim on, so that other slots leave them to it.
            # Only the merged ones count once it has rendered: an adapter that was refused is warm nowhere.
            "warm": self.rendering.spec.adapter_key if self.rendering else merged_key,
            "base_drift": str(self.corrupted),
        }


class WorkerState:
    """Everything about this process that changes while it runs.

    Any thread may call any method; a signal handler may call only `start_draining`, which takes no lock.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._now = WorkerSnapshot()
        # One assignment, outside the lock: SIGTERM's handler may interrupt a thread that holds the lock.
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
        """Whether the process has been asked to stop; it claims nothing more."""
        return self._draining

    @property
    def storage_failed(self) -> bool:
        """Whether an item could not be stored, and the store has not answered since."""
        return self.snapshot().storage_failed

    def on_change(self, announce: Callable[[], None]) -> None:
        """Call `announce` after each change of the claims or of the condition, in the thread that made it."""
        self._announce = announce

    def add_claim(self, claim: Claim) -> None:
        """Record an item that this process has claimed and is going to render."""
        with self._lock:
            self._now = replace(self._now, claims=(*self._now.claims, claim), rendering=claim)
        self._announce()

    def finish_rendering(self, claim: Claim) -> None:
        """Record that an item has rendered; it stays among the claims until it is stored."""
        with self._lock:
            self._now = replace(self._now, rendering=self._rendering_without(claim))

    def remove_claim(self, claim: Claim) -> None:
        """Record that an item is no longer this process's."""
        with self._lock:
            left = tuple(other for other in self._now.claims if other != claim)
            self._now = replace(self._now, claims=left, rendering=self._rendering_without(claim))
        self._announce()

    def change_condition(self, condition: Condition) -> bool:
        """Set the condition; return whether it was another one before."""
        with self._lock:
            changed = self._now.condition != condition
            self._now = replace(self._now, condition=condition)
        if changed:
            self._announce()
        return changed

    def start_draining(self) -> None:
        """Claim nothing more from now on; only the next heartbeat says so: a signal handler must not wait for Redis."""
        self._draining = True

    def record_storage_failure(self) -> None:
        """Remember that an item could not be stored."""
        self._update(storage_failed=True)

    def record_storage_recovery(self) -> None:
        """Remember that the store answers again."""
        self._update(storage_failed=False)

    def record_corrupted(self, parameters: int) -> None:
        """Set how many restored weights differ from the loaded ones; sent with the next heartbeat."""
        self._update(corrupted=parameters)

    @contextmanager
    def handling_wakeup(self) -> Iterator[None]:
        """Count a wake-up, and show that it is being handled in this block."""
        with self._lock:
            self._now = replace(self._now, wakeups=self._now.wakeups + 1, answering=True)
        try:
            yield
        finally:
            self._update(answering=False)

    def _rendering_without(self, claim: Claim) -> Claim | None:
        return None if self._now.rendering == claim else self._now.rendering

    def _update(self, **changes: bool | int) -> None:
        with self._lock:
            self._now = replace(self._now, **changes)  # type: ignore[arg-type]  # each caller names its own field
