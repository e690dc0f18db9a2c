"""Trace a request from its submit to its webhook, across processes; by default nothing is traced.

A trace context travels as the text that W3C calls `traceparent`: in the header of a call, and in the record of a job.
Importing this module imports no library; `shared.otel` has the tracer that exports spans.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, Literal

from shared.errors import MissingExtra
from shared.settings import TraceSettings

Kind = Literal["internal", "server", "consumer", "client"]
Value = str | int | float | bool


class Span:
    """A part of a trace. This one belongs to no trace and does nothing."""

    #: The context of this span, from which other processes go on; empty for none.
    traceparent = ""

    def child(self, name: str, *, start_s: float | None = None, **attributes: Value) -> Span:
        """Begin a part of this part.

        Args:
            start_s: seconds since the epoch; None for now.
        """
        return self

    def set(self, **attributes: Value) -> None:
        """Add facts, or replace them."""

    def fail(self, reason: str) -> None:
        """Mark the span as failed."""

    def end(self, *, end_s: float | None = None) -> None:
        """End it, now or at a time; a span that never ends is not exported."""


NO_SPAN: Final = Span()


class Tracer:
    """Makes spans. This one makes none and costs nothing."""

    is_on = False

    def begin(
        self, name: str, *, parent: str, kind: Kind = "internal", start_s: float | None = None, **attributes: Value
    ) -> Span:
        """Begin a span that ends in another block or thread.

        Args:
            parent: the `traceparent` of the span that it belongs to; empty for the first of a trace.
        """
        return NO_SPAN

    @contextmanager
    def span(
        self, name: str, *, parent: str | None = None, kind: Kind = "internal", **attributes: Value
    ) -> Iterator[Span]:
        """Trace a block, which an error marks as failed; spans inside of it are its parts.

        Args:
            parent: as in `begin`; None for the span around this block.
        """
        yield NO_SPAN

    def traceparent(self) -> str:
        """Return the context of the span around this place; empty for none."""
        return ""


NO_TRACER: Final = Tracer()


def make_tracer(settings: TraceSettings, *, service: str, instance: str = "") -> Tracer:
    """Return the tracer of a process.

    Args:
        service: name of the process' kind in traces.
        instance: name of this process among them.

    Raises:
        MissingExtra: the settings ask for traces, and OpenTelemetry is not installed.
    """
    if settings.exporter == "none":
        return NO_TRACER
    try:
        from shared.otel import make_otel_tracer

        return make_otel_tracer(settings.exporter, service=service, instance=instance)
    except ModuleNotFoundError as error:
        raise MissingExtra("opentelemetry", extra="otel") from error
