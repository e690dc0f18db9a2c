"""The state of one adapter swap, shared by the thread that renders, the one that writes and the heartbeat.

`worker.lora.hot_swap` has the diagram of the states.
"""

from __future__ import annotations

import threading
from enum import Enum
from typing import Literal

from shared.job import AdapterReport, adapter_key

#: The change that a swap makes: `merged` starts from the base weights, `restored` ends with them, `swapped` is both.
SwapKind = Literal["none", "restored", "merged", "swapped"]

_BASE_KEY = adapter_key(())


class SwapState(Enum):
    """See the diagram in `worker.lora.hot_swap`."""

    IDLE = "idle"
    DRAINING = "draining"
    WRITING = "writing"
    READY = "ready"
    FAILED = "failed"


_SUCCESSORS: dict[SwapState, frozenset[SwapState]] = {
    SwapState.IDLE: frozenset({SwapState.DRAINING, SwapState.FAILED}),
    SwapState.DRAINING: frozenset({SwapState.WRITING, SwapState.FAILED}),
    SwapState.WRITING: frozenset({SwapState.READY, SwapState.FAILED}),
    SwapState.READY: frozenset(),
    SwapState.FAILED: frozenset(),
}


class AdapterSwap:
    """One replacement of the current adapters; threads may share it.

    Args:
        key: key of the adapters to merge, see `ItemSpec.adapter_key`.
        replaces: key of the adapters that are merged while this swap is idle.
        kind: the change from those adapters to these.
        reports: the effect of each adapter, in merge order.
    """

    def __init__(self, key: str, *, replaces: str, kind: SwapKind, reports: tuple[AdapterReport, ...]) -> None:
        self.key = key
        self.reports = reports
        self._replaces = replaces
        self._kind = kind
        self._changed = threading.Condition()
        self._state = SwapState.IDLE
        self._is_claimed = False  # whether an item uses this swap already
        self._failure: BaseException | None = None  # until one `wait` has raised it
        self._base_restored = False  # after a failure: whether all base weights are restored

    @classmethod
    def finished_to_base(cls) -> AdapterSwap:
        """Return a finished swap to the base model."""
        swap = cls(_BASE_KEY, replaces=_BASE_KEY, kind="none", reports=())
        swap.begin()
        swap.start_writing()
        swap.finish()
        swap.claim()
        return swap

    @property
    def state(self) -> SwapState:
        """The current state; other threads may change it at any time until it is ready or failed."""
        return self._state

    @property
    def warm_key(self) -> str:
        """Key of the adapters that the next step renders with; never that of a failed swap."""
        with self._changed:
            if self._state is SwapState.IDLE:
                return self._replaces
            return _BASE_KEY if self._state is SwapState.FAILED else self.key

    @property
    def merged_key(self) -> str | None:
        """Key of the adapters that are completely merged into the weights; None while the weights are incomplete."""
        with self._changed:
            if self._state is SwapState.READY:
                return self.key
            return _BASE_KEY if self._base_restored else None

    def can_be_claimed_for(self, key: str) -> bool:
        """Whether this swap leads to these adapters and no item has claimed it yet."""
        with self._changed:
            # A failure that `wait` has not raised yet will fail this item. If it was raised already, the item would
            # render without noticing that the adapters are not in the weights.
            is_over = self._state is SwapState.FAILED and self._failure is None
            return not self._is_claimed and self.key == key and not is_over

    def claim(self) -> SwapKind:
        """Claim this swap for an item; return its kind to the first item, and `none` to each later one."""
        with self._changed:
            is_first, self._is_claimed = not self._is_claimed, True
        return self._kind if is_first else "none"

    def begin(self) -> None:
        """Start to drain: the last passes with the old weights still run."""
        self._change(SwapState.DRAINING)

    def start_writing(self) -> None:
        """Record that no pass with the old weights is left."""
        self._change(SwapState.WRITING)

    def finish(self) -> None:
        """Record that every weight is written and verified."""
        self._change(SwapState.READY)

    def fail(self, failure: BaseException | None, *, base_restored: bool) -> None:
        """End the swap without its adapters.

        Args:
            failure: the error that the next `wait` raises; None if the caller raises it.
            base_restored: whether all base weights are restored.
        """
        self._change(SwapState.FAILED, failure=failure, base_restored=base_restored)

    def wait(self) -> None:
        """Return when the swap is ready or has failed; raise its failure, once."""
        with self._changed:
            self._changed.wait_for(lambda: not _SUCCESSORS[self._state])
            failure, self._failure = self._failure, None
        try:
            if failure is not None:
                raise failure
        finally:
            # Otherwise the error and this frame keep each other alive, and with them the failed swap's tensors.
            del failure

    def _change(self, state: SwapState, *, failure: BaseException | None = None, base_restored: bool = False) -> None:
        with self._changed:
            if state not in _SUCCESSORS[self._state]:
                raise RuntimeError(f"an adapter swap that is {self._state.value} cannot become {state.value}")
            self._state, self._failure, self._base_restored = state, failure, base_restored
            self._changed.notify_all()
