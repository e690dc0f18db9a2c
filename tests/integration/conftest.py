"""The real application on a real socket, over the session's Redis and S3."""

import base64

import pytest
from api_keys import add_key
from finished_images import store_image
from hub_server import HubServer
from huggingface_hub import constants
from served_api import serve

from api.doors import keyring
from shared.celery_app import make_celery
from shared.job import ItemResult, PipelineReport
from shared.ledger import Ledger
from shared.settings import QueueSettings
from shared.storage import open_store

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


@pytest.fixture
def hub(monkeypatch):
    """A Hugging Face hub on this host, which the hub's library uses in this process; a test fills it."""
    with HubServer() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield hub


@pytest.fixture
def serve_api(wait_until):
    """A function for `with`: it serves an API with the given settings, and its value is as that of `api`."""
    return lambda made, **options: serve(made, wait_until, **options)


@pytest.fixture
def make_result():
    """Describe a finished image that no store has."""

    def make(key="results/x/1/0.png"):
        return ItemResult(
            key=key,
            format="png",
            content_type="image/png",
            width=64,
            height=64,
            sha256="00",
            size_bytes=10,
            timings={"denoise": 1.0},
            adapters=(),
            pipeline=PipelineReport(
                engine="exact",
                precision="fp32",
                base_revision="r",
                device="cpu",
                adapter_mode="merged",
                change="none",
                versions={},
            ),
        )

    return make


@pytest.fixture(name="store_image")
def fixture_store_image():
    """Store the image of a claim and describe it, as a worker does before it commits the result."""
    return store_image


@pytest.fixture
def finish(store_image):
    """Finish the item of a claim with an image."""

    def commit(api, claim, data=b"picture", adapters=()):
        assert api.ledger.commit(claim, store_image(api, claim, data, adapters)) == "committed"

    return commit


@pytest.fixture
def make_worker(redis_url):
    """Assemble a worker that is named `test` from its settings, ledger and renderer; no thread of it is started."""
    # Torch takes seconds to import, and most tests need none.
    from worker.consumer.adapter_files import AdapterFiles
    from worker.consumer.heartbeat import Heartbeat
    from worker.consumer.slot import Slot
    from worker.consumer.worker import Worker
    from worker.consumer.worker_state import WorkerState

    def make(settings, ledger, renderer, features=()):
        slot = Slot(
            name="test",
            model="flux2",
            device="cpu",
            revision="r",
            precision="fp32",
            engines=("exact",),
            features=features,
        )
        state = WorkerState()
        return Worker(
            settings=settings,
            ledger=ledger,
            store=open_store(settings),
            celery=make_celery(redis_url, side="worker", timeout_s=2),
            renderer=renderer,
            slot=slot,
            state=state,
            heartbeat=Heartbeat(ledger, slot, state, renderer, counts_s=0),
            adapter_files=AdapterFiles(settings.adapters, cache=None),
        )

    return make


@pytest.fixture
def make_key(redis_client, redis_url, monkeypatch):
    """Make a key and return the headers that send it; the API reads its record for each call."""
    monkeypatch.setattr(keyring, "FRESH_S", 0.0)
    ledger = Ledger.connect(redis_url, QueueSettings(), timeout_s=5)

    return lambda **options: {"Authorization": f"Bearer {add_key(ledger, **options)}"}
