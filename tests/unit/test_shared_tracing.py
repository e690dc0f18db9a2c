"""Traces are off by default and then import nothing; with OpenTelemetry, spans and their contexts are W3C's."""

import json
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from shared.errors import MissingExtra
from shared.log_context import item_context
from shared.otel import OtelTracer
from shared.settings import TraceSettings
from shared.tracing import NO_SPAN, NO_TRACER, make_tracer

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def exporter():
    return InMemorySpanExporter()


@pytest.fixture
def tracer(exporter):
    made = OtelTracer(SimpleSpanProcessor(exporter), service="flux2-test", instance="gpu-0")
    yield made
    made.shutdown()


def test_without_an_exporter_nothing_is_traced_and_no_library_is_imported():
    assert make_tracer(TraceSettings(), service="x") is NO_TRACER
    with NO_TRACER.span("block", parent=PARENT) as span:
        assert span is NO_SPAN
        assert NO_TRACER.traceparent() == ""
        assert NO_TRACER.begin("x", parent=PARENT).child("y").traceparent == ""
    # redis-py imports the library itself where it is installed.
    code = "import api.app, worker.consumer.wakeup, sys; sys.exit('shared.otel' in sys.modules)"
    assert subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=False).returncode == 0


def test_an_exporter_without_its_library_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "shared.otel", None)

    with pytest.raises(MissingExtra, match=r"install flux2-queue\[otel\]"):
        make_tracer(TraceSettings(exporter="otlp"), service="x")


def test_a_block_is_a_part_of_the_block_around_it(tracer, exporter):
    with tracer.span("outer", parent=PARENT, kind="server") as outer, tracer.span("inner", images=3):
        around = tracer.traceparent()

    inner_span, outer_span = exporter.get_finished_spans()
    assert inner_span.parent.span_id == outer_span.context.span_id
    assert outer_span.parent.span_id == 0xB7AD6B7169203331
    assert inner_span.attributes == {"flux2.images": 3}
    version, trace_id, span_id, flags = around.split("-")
    assert (version, trace_id, flags) == ("00", PARENT.split("-")[1], "01")
    assert span_id == f"{inner_span.context.span_id:016x}"
    assert outer.traceparent.split("-")[2] == f"{outer_span.context.span_id:016x}"
    assert tracer.traceparent() == ""


def test_a_span_goes_on_in_another_process_by_its_text(tracer, exporter):
    first = tracer.begin("first", parent="", start_s=1000.0)
    second = tracer.begin("second", parent=first.traceparent, start_s=1001.5)
    second.child("part", start_s=1001.5).end(end_s=1001.75)
    second.end(end_s=1002.0)
    first.end(end_s=1003.0)

    part, second_span, first_span = exporter.get_finished_spans()
    assert part.parent.span_id == second_span.context.span_id
    assert second_span.parent.span_id == first_span.context.span_id
    assert first_span.parent is None
    assert (part.start_time, part.end_time) == (1_001_500_000_000, 1_001_750_000_000)


def test_an_error_marks_its_block_without_its_message(tracer, exporter):
    with pytest.raises(ValueError, match="prompt"), tracer.span("block"):
        raise ValueError("a secret prompt")

    [span] = exporter.get_finished_spans()
    assert (span.status.is_ok, span.status.description) == (False, "ValueError")
    assert span.events == ()


def test_a_process_is_named_and_opentelemetrys_variables_come_first(exporter, monkeypatch):
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "service.name=mine,region=eu")
    tracer = OtelTracer(SimpleSpanProcessor(exporter), service="flux2-worker", instance="gpu-0")
    tracer.begin("x", parent="").end()

    [span] = exporter.get_finished_spans()
    names = {"service.name": "mine", "service.instance.id": "gpu-0", "region": "eu"}
    assert span.resource.attributes.items() >= names.items()
    tracer.shutdown()


def test_the_console_gets_one_line_of_json_for_each_span(capsys):
    tracer = make_tracer(TraceSettings(exporter="console"), service="flux2-api")
    tracer.begin("first", parent="").end()
    tracer.begin("second", parent="").end()
    tracer.shutdown()

    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [line["name"] for line in lines] == ["first", "second"]


class Collector(BaseHTTPRequestHandler):
    """Keeps what is sent to it."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.received.append((self.path, ExportTraceServiceRequest.FromString(body)))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *arguments):
        pass


def test_a_collector_gets_the_last_spans_when_the_process_ends(serve_http, monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Collector)
    server.received = []
    serve_http(server)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    tracer = make_tracer(TraceSettings(exporter="otlp"), service="flux2-worker", instance="gpu-0")

    tracer.begin("only", parent=PARENT, images=3).end()
    # As the interpreter does at its exit.
    tracer.shutdown()

    [(path, request)] = server.received
    [resource] = request.resource_spans
    names = {each.key: each.value.string_value for each in resource.resource.attributes}
    assert (path, names["service.name"], names["service.instance.id"]) == ("/v1/traces", "flux2-worker", "gpu-0")
    [span] = resource.scope_spans[0].spans
    assert (span.name, span.trace_id.hex(), span.attributes[0].value.int_value) == ("only", PARENT.split("-")[1], 3)


def test_log_lines_about_a_traced_item_name_the_trace(configured):
    def act(logger):
        with item_context("job:1", traceparent=PARENT):
            logger.info("traced")
        with item_context("job:1", traceparent="nonsense"):
            logger.info("untraced")

    traced, untraced = (json.loads(line) for line in configured("json", act).splitlines())
    assert traced["trace_id"] == PARENT.split("-")[1]
    assert "trace_id" not in untraced
