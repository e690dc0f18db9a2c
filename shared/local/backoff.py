"""Compute how long to wait before a dead process is restarted."""

from __future__ import annotations

from dataclasses import dataclass

#: A process that lived this long started well: its next restart needs no wait.
STABLE_AFTER_S = 30.0
FIRST_WAIT_S = 1.0
LONGEST_WAIT_S = 60.0


@dataclass
class Backoff:
    """The restart waits of one process: no wait after a stable life, else 1 s, doubled at each death up to a minute."""

    wait_s: float = 0.0
    due_s: float | None = None

    def is_due(self, *, started_s: float, now_s: float) -> bool:
        """Return whether to restart the dead process now; callers poll this, and it is true once for each death.

        Args:
            started_s: when the process was last started, by the clock of `now_s`.
        """
        if self.due_s is None:
            was_stable = now_s - started_s >= STABLE_AFTER_S
            self.wait_s = 0.0 if was_stable else min(max(FIRST_WAIT_S, 2 * self.wait_s), LONGEST_WAIT_S)
            self.due_s = now_s + self.wait_s
        if now_s < self.due_s:
            return False
        self.due_s = None
        return True
