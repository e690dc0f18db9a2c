"""Show how far the start of a stack is: in place on a terminal, in lines when piped."""

from __future__ import annotations

import json
import re
import time
from types import TracebackType
from typing import Self

from rich.text import Text

from shared.console import LineConsole
from shared.visible_text import escape_controls

# Long enough that a download of 112 GB does not fill a log, short enough that nobody thinks that it hangs.
_LINE_EVERY_S = 10.0
# Time and level, which the format `console` writes first.
_LOG_PREFIX = re.compile(r"^\d{4}-\S+Z? \[\w+ *\] ")


class StartDisplay:
    """The progress of one start, as a context manager; `show` is what `Stack.start` calls."""

    def __init__(self, console: LineConsole) -> None:
        self._console = console
        self._status = console.status("starting")
        self._stage = ""
        self._stage_s = self._line_s = time.monotonic()

    def show(self, stage: str, detail: str) -> None:
        """Show what the start waits for, the seconds since that began, and the process' last log line."""
        now_s = time.monotonic()
        is_new = stage != self._stage
        if is_new:
            self._stage, self._stage_s = stage, now_s
        waited_s = now_s - self._stage_s
        text = f"{stage} ({waited_s:.0f} s)" if waited_s >= 1 else stage
        if self._console.is_terminal:
            line = Text(escape_controls(f"{text}  {_message(detail)}"), no_wrap=True, overflow="ellipsis")
            line.truncate(max(self._console.width - 4, 1), overflow="ellipsis")
            self._status.update(line)
        elif is_new or now_s - self._line_s >= _LINE_EVERY_S:
            self._line_s = now_s
            said = "" if is_new else _message(detail)
            self._console.print_line(f"{text}: {said}" if said else text)

    def __enter__(self) -> Self:
        self._status.start()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _at: TracebackType | None
    ) -> None:
        self._status.stop()


def _message(log_line: str) -> str:
    """Return a log line without its time and level, from either log format."""
    if not log_line.startswith("{"):
        return _LOG_PREFIX.sub("", log_line)
    try:
        entry = json.loads(log_line)
    except ValueError:
        return log_line
    known = ("event", "level", "logger", "timestamp")
    values = " ".join(f"{name}={value}" for name, value in entry.items() if name not in known)
    return f"{entry.get('event', '')} {values}".strip()
