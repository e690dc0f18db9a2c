"""How far a batch is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

#: Jobs under way at a time, unless the caller says otherwise: one page of the API's listing shows all of them.
DEFAULT_IN_FLIGHT: Final = 100


@dataclass(frozen=True)
class BatchProgress:
    """Numbers of lines of one batch file; blank lines do not count.

    Attributes:
        lines: in the file; None while it is being read.
        succeeded: answered with all their images, by this run or an earlier one.
        failed: answered with an error.
        in_flight: submitted and not answered yet.
        earlier: answered by an earlier run.
        changed: of those, the ones whose content is not the one that was answered.
        lost: whose jobs the API does not know any more; the next run submits them again.
    """

    lines: int | None = None
    succeeded: int = 0
    failed: int = 0
    in_flight: int = 0
    earlier: int = 0
    changed: int = 0
    lost: int = 0

    @property
    def answered(self) -> int:
        return self.succeeded + self.failed
