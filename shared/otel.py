"""Export traces with OpenTelemetry, to a collector or as lines of JSON."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Final, Literal

from opentelemetry import context, trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import SERVICE_INSTANCE_ID, SERVICE_NAME, OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SimpleSpanProcessor
from opentelemetry.trace import SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from shared.tracing import Kind, Span, Tracer, Value

_KINDS: Final = {
    "internal": SpanKind.INTERNAL,
    "server": SpanKind.SERVER,
    "consumer": SpanKind.CONSUMER,
    "client": SpanKind.CLIENT,
}
_PROPAGATOR: Final = TraceContextTextMapPropagator()
_HEADER: Final = "traceparent"
_PREFIX: Final = "flux2."


def make_otel_tracer(exporter: Literal["otlp", "console"], *, service: str, instance: str) -> Tracer:
    """Return a tracer that sends spans to a collector in a thread, or writes them to standard error."""
    if exporter == "console":
        # At once: whoever reads along waits for no batch.
        return OtelTracer(SimpleSpanProcessor(_console()), service=service, instance=instance)
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    # Address, headers, sampling and so on come from the variables OTEL_*.
    return OtelTracer(BatchSpanProcessor(OTLPSpanExporter()), service=service, instance=instance)


def _console() -> ConsoleSpanExporter:
    def write_line(span: ReadableSpan) -> str:
        return f"{span.to_json(indent=None)}\n"

    return ConsoleSpanExporter(out=sys.stderr, formatter=write_line)


class OtelSpan(Span):
    """A span of OpenTelemetry."""

    def __init__(self, tracer: trace.Tracer, span: trace.Span) -> None:
        self._tracer = tracer
        self.span = span
        self.traceparent = _write(trace.set_span_in_context(span, Context()))

    def child(self, name: str, *, start_s: float | None = None, **attributes: Value) -> OtelSpan:
        parent = trace.set_span_in_context(self.span, Context())
        return OtelSpan(self._tracer, _start(self._tracer, name, parent, "internal", start_s, attributes))

    def set(self, **attributes: Value) -> None:
        self.span.set_attributes(_named(attributes))

    def fail(self, reason: str) -> None:
        self.span.set_status(Status(StatusCode.ERROR, reason))

    def end(self, *, end_s: float | None = None) -> None:
        self.span.end(_to_ns(end_s))


class OtelTracer(Tracer):
    """Makes spans of OpenTelemetry; the end of the process exports the last ones.

    Args:
        processor: gets the spans that have ended.
    """

    is_on = True

    def __init__(self, processor: SpanProcessor, *, service: str, instance: str = "") -> None:
        names = {SERVICE_NAME: service, **({SERVICE_INSTANCE_ID: instance} if instance else {})}
        # OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES come first.
        self._provider = TracerProvider(resource=Resource.create(names).merge(OTELResourceDetector().detect()))
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("flux2", version("flux2-queue"))

    def begin(
        self, name: str, *, parent: str, kind: Kind = "internal", start_s: float | None = None, **attributes: Value
    ) -> OtelSpan:
        return OtelSpan(self._tracer, _start(self._tracer, name, _read(parent), kind, start_s, attributes))

    @contextmanager
    def span(
        self, name: str, *, parent: str | None = None, kind: Kind = "internal", **attributes: Value
    ) -> Iterator[OtelSpan]:
        around = context.get_current() if parent is None else _read(parent)
        span = OtelSpan(self._tracer, _start(self._tracer, name, around, kind, None, attributes))
        token = context.attach(trace.set_span_in_context(span.span))
        try:
            yield span
        except BaseException as error:
            # Its message may quote a prompt.
            span.fail(type(error).__name__)
            raise
        finally:
            context.detach(token)
            span.end()

    def traceparent(self) -> str:
        return _write(context.get_current())

    def shutdown(self) -> None:
        """Export the remaining spans, and make no more."""
        self._provider.shutdown()


def _start(
    tracer: trace.Tracer, name: str, around: Context, kind: Kind, start_s: float | None, attributes: dict[str, Value]
) -> trace.Span:
    return tracer.start_span(
        name, context=around, kind=_KINDS[kind], attributes=_named(attributes), start_time=_to_ns(start_s)
    )


def _named(attributes: dict[str, Value]) -> dict[str, Value]:
    """Return the attributes under this project's prefix."""
    return {_PREFIX + name: value for name, value in attributes.items()}


def _read(traceparent: str) -> Context:
    """Return the context that a text names; an empty one if the text is not W3C's."""
    return _PROPAGATOR.extract({_HEADER: traceparent}, context=Context()) if traceparent else Context()


def _write(around: Context) -> str:
    carrier: dict[str, str] = {}
    _PROPAGATOR.inject(carrier, context=around)
    return carrier.get(_HEADER, "")


def _to_ns(seconds: float | None) -> int | None:
    return None if seconds is None else round(seconds * 1_000_000_000)
