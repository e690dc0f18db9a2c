"""The real application on a real socket, over the session's Redis and S3."""

import base64
import threading
from contextlib import contextmanager
from types import SimpleNamespace

import httpx2
import pytest
import uvicorn

from api.app import create_app
from shared.local.ports import pick_free_port

WEBHOOK_SECRET = "whsec_" + base64.b64encode(bytes(range(32))).decode()


class Clock:
    """Replaces the ledger's clock; a test moves it."""

    def __init__(self) -> None:
        self.ms = 1_700_000_000_000

    def __call__(self) -> int:
        return self.ms

    def advance(self, seconds: float) -> None:
        self.ms += int(seconds * 1000)


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def webhook_secret():
    return WEBHOOK_SECRET


@pytest.fixture
def adapter_root(tmp_path):
    root = tmp_path / "adapters"
    root.mkdir()
    return root


@pytest.fixture
def api(redis_client, redis_url, s3, settings, adapter_root, wait_until):
    """A served application: `.http` is a client of it, `.services` what it stands on, with `.ledger` and `.store`."""
    made = settings(
        redis={"url": redis_url},
        storage=s3.storage.model_dump(),
        s3=s3.s3.model_dump(),
        adapters={"root": adapter_root},
        queue={"cap": 50},
        api={"max_body_bytes": 64 * 1024},
        webhook={"secret": WEBHOOK_SECRET, "allow_private": True, "timeout_s": 1},
    )
    with serve(made, wait_until) as served:
        yield served


@contextmanager
def serve(made, wait_until):
    """Serve the API with these settings; see `api`."""
    app = create_app(made)
    port = pick_free_port()
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_config=None))
    thread = threading.Thread(target=server.run)
    thread.start()
    wait_until(lambda: server.started, what="the API's start")
    services = app.state.services
    with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=10) as client:
        yield SimpleNamespace(
            http=client,
            url=f"http://127.0.0.1:{port}",
            ledger=services.ledger,
            store=services.store,
            settings=made,
            services=services,
        )
    server.should_exit = True
    thread.join()


@pytest.fixture
def serve_api(wait_until):
    """A function for `with`: it serves an API with the given settings, and its value is as that of `api`."""
    return lambda made: serve(made, wait_until)
