"""How long a process that keeps dying has to wait before it is started again."""

from __future__ import annotations

from dataclasses import dataclass

#: A process that lived this long had started well; its end is a new matter.
SETTLED_S = 30.0
FIRST_S = 1.0
LONGEST_S = 60.0


@dataclass
class Backoff:
    """The waits of one process: none after a settled life, else 1 s, doubled at each death up to a minute."""

    delay_s: float = 0.0
    due_s: float | None = None

    def is_due(self, *, started_s: float, now_s: float) -> bool:
        """Ask, as often as you like while the process is dead, whether to start it; True once for each death.

        Args:
            started_s: when its last life began, by the clock of `now_s`.
        """
        if self.due_s is None:
            settled = now_s - started_s >= SETTLED_S
            self.delay_s = 0.0 if settled else min(max(FIRST_S, 2 * self.delay_s), LONGEST_S)
            self.due_s = now_s + self.delay_s
        if now_s < self.due_s:
            return False
        self.due_s = None
        return True
