"""A worker keeps the adapters that it has merged, also if their sha256 was unknown when their jobs were accepted."""

import hashlib
from dataclasses import replace

import pytest

from chaos.stub import StubRenderer
from shared.job import AdapterRef
from shared.ledger import Ledger
from shared.settings import QueueSettings
from shared.sources.cache import FileCache
from shared.sources.remote_file import Pin
from worker.consumer.adapter_files import AdapterFiles
from worker.consumer.wakeup import run_next

SIZE = 1000
RED, BLUE = (
    AdapterRef(path=f"s3://loras/{name}", sha256="", size_bytes=SIZE, multiplier=1.0, pin='etag:"1"')
    for name in ("red", "blue")
)


class MergingRenderer(StubRenderer):
    """Names the adapters of its last item as warm, and notes each item that changed them."""

    def __init__(self):
        super().__init__(0.0)
        self.swaps = []

    def render(self, spec, adapters, *, on_progress, previews=None):
        if spec.adapter_key != self.warm_key:
            self.swaps.append(spec.adapters[0])
            self.warm_key = spec.adapter_key
        return super().render(spec, adapters, on_progress=on_progress)


class ObjectInS3:
    """An object whose sha256 no one states."""

    sha256, size_bytes = None, SIZE

    def __init__(self, name, pin):
        self.data = name.encode().ljust(SIZE)
        self.pin = Pin.parse(pin)

    def stream(self, start):
        yield self.data[start:]


@pytest.fixture
def worker(redis_client, redis_url, settings, tmp_path, make_worker):
    made = settings(redis={"url": redis_url}, storage={"backend": "directory", "directory": tmp_path / "objects"})
    worker = make_worker(made, Ledger(redis_client, QueueSettings()), MergingRenderer())
    files = AdapterFiles(
        made.adapters, FileCache(tmp_path / "cache", max_bytes=10 * SIZE, open_file=ObjectInS3, retry_budget_s=0.0)
    )
    return replace(worker, adapter_files=files)


def test_alternating_adapters_in_s3_are_swapped_once_each(worker, item):
    for number in range(6):
        ref = (RED, BLUE)[number % 2]
        worker.ledger.accept(f"job-{number}", [item(seed=number, adapters=(ref,))], record={})

    while run_next(worker):
        pass

    assert [ref.path for ref in worker.renderer.swaps] == [RED.path, BLUE.path]
    assert [ref.sha256 for ref in worker.renderer.swaps] == [
        hashlib.sha256(ref.path.encode().ljust(SIZE)).hexdigest() for ref in (RED, BLUE)
    ]


def test_other_workers_leave_an_adapter_in_s3_to_the_worker_that_has_it(worker, item):
    worker.ledger.accept("first", [item(adapters=(RED,))], record={})
    run_next(worker)
    worker.heartbeat.send()
    for number, ref in enumerate((RED, BLUE)):
        worker.ledger.accept(f"job-{number}", [item(seed=number, adapters=(ref,))], record={})

    claim = worker.ledger.claim_next(["flux2"], slot="other", boot="1", warm="base")

    assert claim.spec.adapters == (BLUE,)
    assert worker.ledger.workers.live_slots()[0].warm == claim.spec.model_copy(update={"adapters": (RED,)}).adapter_key
