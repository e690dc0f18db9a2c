"""Write log lines to standard error: a constant message and its values, as text for people or JSON for machines."""

from __future__ import annotations

import logging
import sys

import structlog

from shared.settings import LogSettings


def configure(settings: LogSettings) -> None:
    """Send the project's logs and its libraries' warnings to one handler; call this once, when the process starts."""
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
        if settings.format == "json"
        # No padding: messages are sentences, not columns.
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), pad_event_to=0)
    )
    formatter = structlog.stdlib.ProcessorFormatter(
        # Every record is foreign to structlog, since the project logs through the standard library.
        foreign_pre_chain=[
            structlog.stdlib.add_log_level,
            structlog.stdlib.add_logger_name,
            structlog.stdlib.ExtraAdder(),
            structlog.processors.TimeStamper(fmt="iso", utc=True),
        ],
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.format_exc_info,
            renderer,
        ],
    )
    handler = logging.StreamHandler()
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    # Of libraries only warnings; FLUX2_LOG_LEVEL sets the level of the project's own loggers.
    root.setLevel(logging.WARNING)
    logging.getLogger("flux2").setLevel(settings.level)
