"""Items with reference images through a worker: real ledger, real S3, the tiny model in this process."""

import io
import uuid
from hashlib import sha256

import pytest
import torch
from PIL import Image

from shared.errors import StorageUnavailable
from shared.image_parameters import read_parameters
from shared.job import ReferenceRef, ReferenceReport, State
from shared.ledger import Ledger
from shared.references import reference_key
from shared.settings import ModelSettings
from shared.storage import open_store
from worker.consumer.reference_files import reference_loader
from worker.consumer.wakeup import run_next
from worker.model.demo_model import write_tiny_checkpoint
from worker.model.load import load_components
from worker.rendering.renderer import Renderer


@pytest.fixture(scope="module")
def components(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    write_tiny_checkpoint(folder)
    model = ModelSettings(path=str(folder), text_encoder=str(folder / "text_encoder"), precision="fp32")
    return load_components(model, device=torch.device("cpu"), hf_token=None)


@pytest.fixture
def worker(redis_client, redis_url, s3, settings, adapter_root, components, make_worker):
    made = settings(
        redis={"url": redis_url},
        storage=s3.storage.model_dump(),
        s3=s3.s3.model_dump(),
        adapters={"root": adapter_root},
        queue={"renew_s": 0.05, "lease_ttl_s": 5, "max_attempts": 2},
    )
    renderer = Renderer(components, prompt_cache=4, load_reference=reference_loader(open_store(made)))
    return make_worker(made, Ledger(redis_client, made.queue), renderer, features=("references",))


def drawn(color):
    file = io.BytesIO()
    Image.new("RGB", (101, 87), color).save(file, "PNG")
    return file.getvalue()


def put(worker, data, *, slot=1):
    """Store an image as the API does, and return its reference."""
    digest = sha256(data).hexdigest()
    worker.store.put(reference_key(digest), data, content_type="image/png")
    return ReferenceRef(slot=slot, sha256=digest)


@pytest.fixture
def accept(worker, item):
    """Accept one item with these references; the returned function reads it from the ledger."""

    def accept(*references):
        job_id = uuid.uuid4().hex
        worker.ledger.accept(job_id, [item(references=references)], record={})
        return lambda: worker.ledger.job(job_id).items[0]

    return accept


@pytest.fixture
def run(worker, accept):
    """Accept one item with these references, run the worker once, and return the item."""

    def run(*references):
        read = accept(*references)
        assert run_next(worker)
        return read()

    return run


def test_the_result_and_the_file_say_which_references_were_used(worker, run):
    plain, red, blue = run(), put(worker, drawn("red"), slot=3), put(worker, drawn("blue"))

    done = run(red, blue)

    assert done.state is State.SUCCEEDED
    used = (
        ReferenceReport(slot=1, sha256=blue.sha256, width=96, height=80),
        ReferenceReport(slot=3, sha256=red.sha256, width=96, height=80),
    )
    assert done.result.references == used
    assert {"fetch_references", "encode_references"} <= done.result.timings.keys()
    data = worker.store.get(done.result.key)
    assert read_parameters(data)["references"] == [report.model_dump() for report in used]
    assert plain.result.references == ()
    before = worker.store.get(plain.result.key)
    assert "references" not in read_parameters(before)
    assert Image.open(io.BytesIO(data)).tobytes() != Image.open(io.BytesIO(before)).tobytes()


def test_an_image_that_the_store_lost_fails_the_item_at_once(run):
    failed = run(ReferenceRef(slot=2, sha256="ab" * 32))

    assert (failed.state, failed.attempt, failed.error.code) == (State.FAILED, 1, "invalid_reference")
    assert failed.error.message.startswith("reference image 2: the store no longer has the image")
    assert not failed.error.retryable


def test_an_image_of_other_bytes_is_never_rendered(worker, run):
    reference = put(worker, drawn("red"))
    worker.store.put(reference_key(reference.sha256), drawn("blue"), content_type="image/png")

    failed = run(reference)

    assert (failed.state, failed.error.code) == (State.FAILED, "invalid_reference")
    assert "does not have the sha256" in failed.error.message


def test_an_item_whose_reference_the_store_does_not_answer_for_gets_another_attempt(worker, accept):
    read = accept(put(worker, drawn("green")))

    def fail_once(store, key):
        patch.undo()
        raise StorageUnavailable(f"GET {key}: connection refused")

    patch = pytest.MonkeyPatch()
    patch.setattr(type(worker.store), "get", fail_once)
    assert run_next(worker)
    assert read().state is State.QUEUED
    assert run_next(worker)

    assert (read().state, read().attempt) == (State.SUCCEEDED, 2)
