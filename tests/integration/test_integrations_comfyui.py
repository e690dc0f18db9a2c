"""The nodes for ComfyUI against a real API with simulated slots; stubs stand in for ComfyUI's own modules."""

import ast
import hashlib
import importlib.util
import inspect
import io
import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from flux2_client import Client
from tools.simulated_service import simulated_service

FOLDER = Path(__file__).parents[2] / "integrations/comfyui"
ADAPTER = "styles/neon_city.safetensors"


class InterruptProcessingException(Exception):
    """ComfyUI's own derives from `Exception` too."""


@pytest.fixture(scope="module")
def service(empty_redis_server):
    """A client of an API with two simulated slots."""
    adapters = {ADAPTER: "neon"}
    with (
        simulated_service(slots=2, step_s=0.02, adapters=adapters, redis=empty_redis_server) as url,
        Client(url) as client,
    ):
        yield SimpleNamespace(url=url, client=client)


@pytest.fixture
def comfy(monkeypatch):
    """ComfyUI: `.nodes` as it loads them, `.progress` that they reported, and `.look`, which a test replaces."""
    state = SimpleNamespace(progress=[], look=lambda: None)

    class ProgressBar:
        def __init__(self, total):
            self.total = total

        def update_absolute(self, value, total=None, preview=None):
            state.progress.append((value, total or self.total))

    package, management, utils = (ModuleType(name) for name in ("comfy", "comfy.model_management", "comfy.utils"))
    management.throw_exception_if_processing_interrupted = lambda: state.look()
    utils.ProgressBar = ProgressBar
    for module in (package, management, utils):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    # As ComfyUI names the module of a folder.
    name = str(FOLDER).replace(".", "_x_")
    spec = importlib.util.spec_from_file_location(name, FOLDER / "__init__.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    state.nodes = module.NODE_CLASS_MAPPINGS
    assert module.NODE_DISPLAY_NAME_MAPPINGS.keys() == state.nodes.keys()
    yield state
    for loaded in [each for each in sys.modules if each.startswith(f"{name}.")]:
        del sys.modules[loaded]


@pytest.fixture
def render(comfy, service, monkeypatch):
    """Run the node that renders, with small defaults."""
    monkeypatch.setenv("FLUX2_CLIENT_URL", service.url)
    node = comfy.nodes["Flux2QueueRender"]()

    def run(**inputs):
        defaults = {"prompt": "a", "width": 128, "height": 64, "seed": 7, "images": 1, "steps": 4, "guidance": 4.0}
        return getattr(node, node.FUNCTION)(**{**defaults, **inputs})

    return run


def newest_job(service):
    return next(iter(service.client.requests()))


def stored_pictures(service, request_id):
    return [np.asarray(image.pil().convert("RGB")) for image in service.client.result(request_id).images]


def test_the_nodes_import_only_what_comfyui_installs():
    nodes = [node for file in FOLDER.glob("*.py") for node in ast.walk(ast.parse(file.read_text()))]
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and not node.level}

    foreign = {name.partition(".")[0] for name in names} - sys.stdlib_module_names

    assert foreign == {"PIL", "comfy", "numpy", "torch"}


@pytest.mark.parametrize("name", ["Flux2QueueRender", "Flux2QueueAdapter"])
def test_a_node_declares_each_argument_and_result_of_its_function(comfy, name):
    node = comfy.nodes[name]
    inputs = node.INPUT_TYPES()

    arguments = inspect.signature(getattr(node, node.FUNCTION)).parameters
    needed = [each.name for each in arguments.values() if each.default is each.empty and each.name != "self"]

    assert needed == list(inputs["required"])
    assert [each for each in arguments if each != "self"] == [*inputs["required"], *inputs["optional"]]
    assert len(node.RETURN_TYPES) == len(node.RETURN_NAMES)
    for kind, *options in {**inputs["required"], **inputs["optional"]}.values():
        default = options[0].get("default") if options else None
        assert default is None or isinstance(default, {"STRING": str, "INT": int, "FLOAT": float}[kind])


def test_a_batch_has_the_images_that_the_service_stored_and_consecutive_seeds(comfy, service, render):
    adapter = comfy.nodes["Flux2QueueAdapter"]()
    [adapters] = adapter.add(ADAPTER, 0.5)

    images, request_id = render(prompt="[trigger] at night", trigger_word="sks", images=3, adapters=adapters)

    assert (images.shape, images.dtype) == ((3, 64, 128, 3), torch.float32)
    stored = stored_pictures(service, request_id)
    for index in range(3):
        assert torch.equal(images[index], torch.from_numpy(stored[index].astype(np.float32) / 255))
    result = service.client.result(request_id)
    assert [(image.seed, image.prompt) for image in result.images] == [(seed, "sks at night") for seed in (7, 8, 9)]
    assert [(image.sample_steps, image.guidance_scale) for image in result.images] == [(4, 4.0)] * 3
    assert comfy.progress == sorted(comfy.progress)
    assert comfy.progress[-1] == (1000, 1000)


def test_adapters_add_up_in_the_order_of_their_nodes(comfy):
    adapter = comfy.nodes["Flux2QueueAdapter"]()

    [first] = adapter.add(" one.safetensors ", 1.0)
    [both] = adapter.add("two.safetensors", -0.5, adapters=first)

    assert first == ({"path": "one.safetensors", "network_multiplier": 1.0},)
    assert both == (*first, {"path": "two.safetensors", "network_multiplier": -0.5})


def test_pictures_of_the_workflow_become_references(service, render):
    pictures = [torch.rand(2, 64, 96, 3), torch.rand(1, 80, 80, 4)]

    _, request_id = render(reference_1=pictures[0], reference_3=pictures[1])

    [image] = service.client.result(request_id).images
    assert [(each.slot, each.width, each.height) for each in image.references] == [(1, 96, 64), (2, 80, 80)]
    for reference, picture in zip(image.references, pictures, strict=True):
        data = service.client.download(reference.url) if reference.url.startswith("http") else read_file(reference.url)
        assert hashlib.sha256(data).hexdigest() == reference.sha256
        expected = (picture[0, ..., :3] * 255).round().to(torch.uint8).numpy()
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), expected)


def read_file(url):
    return Path(url.removeprefix("file://")).read_bytes()


def test_an_interruption_cancels_the_job(comfy, service, render):
    def interrupt():
        if newest_job(service).status == "in_progress":
            raise InterruptProcessingException

    comfy.look = interrupt
    with pytest.raises(InterruptProcessingException):
        render(prompt="slow", width=1024, height=1024, images=40, steps=150)

    assert service.client.wait(newest_job(service).request_id, timeout_s=60).status == "canceled"


def test_a_job_without_its_images_ends_the_node_with_the_reason(comfy, service, render):
    comfy.look = lambda: service.client.cancel(newest_job(service).request_id)

    with pytest.raises(RuntimeError, match=r"request [0-9a-f-]+ canceled: "):
        render(prompt="slow", width=1024, height=1024, images=40, steps=150)


def test_a_refusal_says_what_the_service_says(render):
    with pytest.raises(RuntimeError, match=r"LORA_NOT_FOUND.*did you mean 'styles/neon_city.safetensors'"):
        render(adapters=({"path": "styles/neon.safetensors", "network_multiplier": 1.0},))


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://127.0.0.1:1", "cannot be reached: .*; start it, or set FLUX2_CLIENT_URL"),
        ("ftp://127.0.0.1", "no address of flux2-queue"),
        ("http://127.0.0.1:port", "no address of flux2-queue"),
        ("http://", "no address of flux2-queue"),
        ("http://127.0.0.1:8000\r", "no address of flux2-queue"),
    ],
)
def test_an_address_that_does_not_answer_is_named(render, monkeypatch, url, message):
    monkeypatch.setenv("FLUX2_CLIENT_URL", url)

    with pytest.raises(RuntimeError, match=message):
        render()


def serve_answers(serve_http, *answers):
    """Serve these (status, headers, body) in turn, or None for no answer; `.calls` has the headers of the calls."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            server.calls.append(dict(self.headers))
            answer = answers[len(server.calls) - 1]
            if answer is None:
                self.close_connection = True
                return
            status, headers, body = answer
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

        do_GET = do_POST

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.calls = []
    return serve_http(server)


def test_the_key_is_sent_to_the_service_and_not_to_where_it_redirects(render, serve_http, monkeypatch):
    other = serve_answers(serve_http, (200, {}, b"{}"))
    moved = serve_answers(serve_http, (308, {"Location": f"http://127.0.0.1:{other.server_port}/"}, b""))
    monkeypatch.setenv("FLUX2_CLIENT_URL", f"http://127.0.0.1:{moved.server_port}")
    monkeypatch.setenv("FLUX2_API_KEY", "flux2_secret")

    with pytest.raises(RuntimeError, match=f"redirects to http://127.0.0.1:{other.server_port}/"):
        render()

    assert [call["Authorization"] for call in moved.calls] == ["Bearer flux2_secret"]
    assert other.calls == []


@pytest.mark.parametrize("key", ["flux2_secret\r", "flux2 secret", "flux2_sécret"])
def test_a_key_that_cannot_be_sent_is_refused_and_not_shown(render, monkeypatch, key):
    monkeypatch.setenv("FLUX2_API_KEY", key)

    with pytest.raises(RuntimeError, match=r"^FLUX2_API_KEY holds a space, a line break or ") as raised:
        render()

    assert "cret" not in str(raised.value)


@pytest.mark.parametrize("answer", [b"<html>", b"[]", b"{}"])
def test_an_answer_of_another_server_is_named_as_such(render, serve_http, monkeypatch, answer):
    server = serve_answers(serve_http, (200, {}, answer))
    monkeypatch.setenv("FLUX2_CLIENT_URL", f"http://127.0.0.1:{server.server_port}")

    with pytest.raises(RuntimeError, match="does not answer as flux2-queue does; check FLUX2_CLIENT_URL"):
        render()


def test_images_that_do_not_arrive_whole_are_named(render, serve_http, monkeypatch):
    ended = {"request_id": "5d1f", "status": "succeeded", "progress": 1.0, "items": []}
    server = serve_answers(
        serve_http, (202, {}, b'{"request_id": "5d1f"}'), (200, {}, json.dumps(ended).encode()), (200, {}, b"PK\3\4")
    )
    monkeypatch.setenv("FLUX2_CLIENT_URL", f"http://127.0.0.1:{server.server_port}")

    with pytest.raises(RuntimeError, match="images of request 5d1f did not arrive whole; run the workflow again, or"):
        render()


def test_a_full_queue_is_asked_again_with_the_same_idempotency_key(render, serve_http, monkeypatch):
    full = b'{"code": "queue_full", "detail": "the queue is full"}'
    refused = b'{"code": "UNAUTHORIZED", "detail": "the API key is missing"}'
    server = serve_answers(serve_http, (429, {"Retry-After": "0"}, full), (503, {}, b"<html>"), (401, {}, refused))
    monkeypatch.setenv("FLUX2_CLIENT_URL", f"http://127.0.0.1:{server.server_port}")

    with pytest.raises(RuntimeError, match="UNAUTHORIZED: the API key is missing; set FLUX2_API_KEY"):
        render()

    assert len(server.calls) == 3
    assert len({call["Idempotency-Key"] for call in server.calls}) == 1


def test_a_submit_whose_answer_is_lost_is_repeated_with_its_idempotency_key(render, serve_http, monkeypatch):
    refused = b'{"code": "UNAUTHORIZED", "detail": "the API key is missing"}'
    server = serve_answers(serve_http, None, (401, {}, refused))
    monkeypatch.setenv("FLUX2_CLIENT_URL", f"http://127.0.0.1:{server.server_port}")

    with pytest.raises(RuntimeError, match="UNAUTHORIZED"):
        render()

    assert len({call["Idempotency-Key"] for call in server.calls}) == 1
    assert len(server.calls) == 2


def test_a_job_that_failed_ends_the_node_with_the_first_reason(render, serve_http, monkeypatch):
    items = [{"error": None}, {"error": {"message": "the GPU ran out of memory"}}, {"error": {"message": "another"}}]
    status = {
        "request_id": "5d1f",
        "status": "failed",
        "progress": 1.0,
        "error": "2 of 3 images failed",
        "items": items,
    }
    server = serve_answers(serve_http, (202, {}, b'{"request_id": "5d1f"}'), (200, {}, json.dumps(status).encode()))
    monkeypatch.setenv("FLUX2_CLIENT_URL", f"http://127.0.0.1:{server.server_port}")

    with pytest.raises(RuntimeError, match=r"^request 5d1f failed: the GPU ran out of memory$"):
        render()

    assert len(server.calls) == 2


def test_a_job_that_cannot_be_canceled_is_named_in_the_log(render, serve_http, monkeypatch, caplog):
    fault = b'{"code": "internal", "detail": "a defect"}'
    server = serve_answers(serve_http, (202, {}, b'{"request_id": "5d1f"}'), (500, {}, fault), (503, {}, fault))
    monkeypatch.setenv("FLUX2_CLIENT_URL", f"http://127.0.0.1:{server.server_port}")

    with pytest.raises(RuntimeError, match=r"^internal: a defect$"):
        render()

    assert caplog.messages == ["request 5d1f goes on, because it could not be canceled: internal: a defect"]
    assert len(server.calls) == 3
