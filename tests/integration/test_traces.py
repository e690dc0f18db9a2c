"""One trace leads from a submit to its webhook, through API, Redis and worker."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind
from PIL import Image

from shared.errors import RunError
from shared.job import Progress
from shared.ledger import keys
from shared.otel import OtelTracer
from worker.consumer.wakeup import run_next

CALLER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
TRACE_ID = 0x0AF7651916CD43DD8448EB211C80319C
STAGES = ("encode", "adapter", "denoise", "decode")


class Renderer:
    """Draws white, and reports every stage as a renderer does; an error takes the place of a picture."""

    warm_key, corrupted = "base", 0

    def __init__(self, pipeline, error=None):
        self._pipeline, self._error = pipeline, error

    def render(self, spec, adapters, *, on_progress, previews=None):
        for stage in STAGES:
            for step in (1, 2):
                on_progress(Progress(stage=stage, step=step, steps=2))
        if self._error is not None:
            raise self._error
        picture = Image.new("RGB", (64, 64), "white")
        return SimpleNamespace(
            image=picture, pipeline=self._pipeline, timings={}, references=(), adapters=(), tokens=None, warnings=()
        )

    def prepare(self, spec, adapters, *, between):
        pass


@pytest.fixture
def spans():
    """The spans that have ended, and `.tracer`, which makes them."""
    exporter = InMemorySpanExporter()
    tracer = OtelTracer(SimpleSpanProcessor(exporter), service="test")
    yield SimpleNamespace(tracer=tracer, ended=exporter.get_finished_spans)
    tracer.shutdown()


@pytest.fixture
def traced_api(spans, monkeypatch, request):
    """The served API, whose submits and webhooks are traced."""
    monkeypatch.setattr("api.app.make_tracer", lambda settings, *, service: spans.tracer)
    return request.getfixturevalue("api")


@pytest.fixture
def work(traced_api, make_worker, make_result, spans):
    """Run the next item; an error takes the place of its picture."""

    def run(error=None):
        worker = make_worker(traced_api.settings, traced_api.ledger, Renderer(make_result().pipeline, error))
        assert run_next(type(worker)(**{**vars(worker), "tracer": spans.tracer}))

    return run


class Receiver(BaseHTTPRequestHandler):
    """Answers 200 to each webhook."""

    def do_POST(self):
        self.send_response(200)
        self.end_headers()

    def log_message(self, *arguments):
        pass


def submit(api, **headers):
    body = {"model": "flux2", "prompts": [{"prompt": "a cat", "width": 64, "height": 64}], "loras": []}
    if webhook := headers.pop("webhook", None):
        body["webhook_url"] = webhook
    answer = api.http.post("/v1/inference", json=body, headers=headers)
    assert answer.status_code == 202, answer.text
    return answer.json()["request_id"]


def tree(spans, parent_id):
    """Return the names of the spans below one, nested, in the order in which they ended."""
    below = [span for span in spans if span.parent and span.parent.span_id == parent_id]
    return [(span.name, tree(spans, span.context.span_id)) for span in below]


def find(spans, name):
    [span] = [span for span in spans.ended() if span.name == name]
    return span


@pytest.fixture
def answered(spans, wait_until):
    """Wait for the span of a submit, which ends after its answer, and return it."""

    def wait():
        wait_until(lambda: any(span.name == "POST /v1/inference" for span in spans.ended()), what="the end of the span")
        return find(spans, "POST /v1/inference")

    return wait


def test_one_trace_leads_from_the_submit_to_the_webhook(traced_api, work, spans, serve_http, wait_until, answered):
    hook = serve_http(ThreadingHTTPServer(("127.0.0.1", 0), Receiver))

    job = submit(traced_api, traceparent=CALLER, webhook=f"http://127.0.0.1:{hook.server_port}/")
    answered()
    work()
    wait_until(lambda: any(span.name == "webhook" for span in spans.ended()), what="the webhook")

    ended = spans.ended()
    assert {span.context.trace_id for span in ended} == {TRACE_ID}
    stages = ["queue wait", "claim", "encode", "swap", "denoise", "decode", "encode image", "upload", "commit"]
    item = ("item", [(name, []) for name in stages])
    assert tree(ended, int(CALLER.split("-")[2], 16)) == [
        ("POST /v1/inference", [("accept", []), item, ("webhook", [])])
    ]
    attributes = find(spans, "item").attributes
    assert (attributes["flux2.request_id"], attributes["flux2.item"]) == (job, f"{job}:0")
    assert (attributes["flux2.slot"], attributes["flux2.attempt"]) == ("test", 1)
    assert answered().attributes["flux2.status"] == 202
    wait, claim = find(spans, "queue wait"), find(spans, "claim")
    assert wait.start_time == find(spans, "item").start_time
    assert wait.end_time == claim.start_time <= claim.end_time


def test_a_webhook_that_fails_is_marked_without_the_message_of_the_error(traced_api, work, spans, wait_until):
    # Nobody listens at the port of the discard protocol.
    submit(traced_api, webhook="http://127.0.0.1:9/")

    work()
    wait_until(lambda: any(span.name == "webhook" for span in spans.ended()), what="the webhook")

    failed = next(span for span in spans.ended() if span.name == "webhook")
    assert (failed.status.is_ok, failed.status.description) == (False, "ConnectError")


def test_an_attempt_that_fails_is_marked_and_the_next_one_is_of_the_same_trace(traced_api, work, spans):
    submit(traced_api)

    work(RunError("a secret prompt"))
    work()

    failed, succeeded = [span for span in spans.ended() if span.name == "item"]
    assert (failed.status.is_ok, failed.status.description) == (False, RunError.code)
    assert succeeded.status.is_ok
    assert (failed.attributes["flux2.attempt"], succeeded.attributes["flux2.attempt"]) == (1, 2)
    assert failed.parent == succeeded.parent
    assert tree(spans.ended(), failed.context.span_id)[-1] == ("release", [])
    assert "secret" not in json.dumps([span.to_json() for span in spans.ended()])


def test_a_refused_submit_is_traced_and_a_read_is_not(traced_api, spans, answered):
    refused = traced_api.http.post("/v1/inference", json={})
    traced_api.http.get("/v1/models")

    assert refused.status_code == 422
    assert answered().attributes["flux2.status"] == 422
    assert len(spans.ended()) == 1


def test_a_header_that_is_no_trace_context_begins_a_trace(traced_api, answered):
    submit(traced_api, traceparent="00-zz")

    assert answered().parent is None


def test_without_a_tracer_nothing_about_traces_is_stored(api):
    job = submit(api, traceparent=CALLER)

    assert "trace" not in api.ledger.redis.hgetall(keys.job(job))
    assert not any("Otel" in thread.name for thread in threading.enumerate())


def test_images_in_openais_form_are_traced_like_a_submit(traced_api, work, spans, wait_until):
    with ThreadPoolExecutor() as pool:
        body = {"model": "flux2", "prompt": "a cat", "size": "64x64"}
        call = pool.submit(
            traced_api.http.post, "/v1/images/generations", json=body, headers={"traceparent": CALLER}, timeout=30
        )
        wait_until(lambda: traced_api.ledger.queue_length("flux2"), what="the job")
        work()
        assert call.result().status_code == 200

    wait_until(lambda: any(span.kind is SpanKind.SERVER for span in spans.ended()), what="the end of the span")
    assert find(spans, "POST /v1/images/generations").context.trace_id == TRACE_ID
    assert find(spans, "item").context.trace_id == TRACE_ID
