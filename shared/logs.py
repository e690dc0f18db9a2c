"""Write log lines to standard error: a constant message and its values, as text for people or JSON for machines."""

from __future__ import annotations

import logging
import sys
import threading
from dataclasses import dataclass
from types import TracebackType

import structlog

from shared.settings import LogSettings
from shared.visible_text import escape_block, escape_controls

logger = logging.getLogger("flux2")

# No record of a log begins with a space, so no line of a traceback passes for one.
_INDENT = "    "


def configure(settings: LogSettings) -> None:
    """Send the project's logs and its libraries' warnings to one handler; call this once, when the process starts."""
    renderers: list[structlog.typing.Processor] = (
        # It writes control characters and everything beyond ASCII with a backslash.
        [structlog.processors.JSONRenderer()]
        if settings.format == "json"
        # No padding: messages are sentences, not columns.
        else [_escape, structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), pad_event_to=0)]
    )
    formatter = structlog.stdlib.ProcessorFormatter(
        # Every record is foreign to structlog, since the project logs through the standard library.
        foreign_pre_chain=[
            structlog.stdlib.add_log_level,
            structlog.stdlib.add_logger_name,
            structlog.stdlib.ExtraAdder(),
            # After a line's own values, which it leaves as they are.
            structlog.contextvars.merge_contextvars,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
        ],
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.format_exc_info,
            *renderers,
        ],
    )
    handler = logging.StreamHandler()
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    # Of libraries only warnings; FLUX2_LOG_LEVEL sets the level of the project's own loggers.
    root.setLevel(logging.WARNING)
    logging.getLogger("flux2").setLevel(settings.level)
    sys.excepthook = _log_uncaught
    threading.excepthook = _log_uncaught_of_thread


@dataclass(frozen=True)
class _Quoted:
    """A text that the renderer quotes: it writes one without spaces as it is, and all other values as `repr` does."""

    text: str

    def __repr__(self) -> str:
        return repr(self.text)


def _escape(_logger: object, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Escape the message, the traceback and every other value."""
    event["event"] = escape_controls(str(event["event"]))
    for name, value in event.items():
        if name in ("exception", "stack") and value:
            event[name] = _INDENT + escape_block(str(value), indent=_INDENT)
        elif isinstance(value, str) and escape_controls(value) != value:
            event[name] = _Quoted(value)
    return event


def _log_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Log an error that ends the process: Python itself would print its message as it is, and not as JSON."""
    if not isinstance(error, Exception):
        sys.__excepthook__(kind, error, trace)
        return
    logger.critical("the process ends with an unexpected error", exc_info=(kind, error, trace))


def _log_uncaught_of_thread(ended: threading.ExceptHookArgs) -> None:
    if ended.exc_value is None or issubclass(ended.exc_type, SystemExit):
        return
    name = ended.thread.name if ended.thread else "?"
    logger.critical(
        "a thread ends with an unexpected error",
        exc_info=(ended.exc_type, ended.exc_value, ended.exc_traceback),
        extra={"ended_thread": name},
    )
