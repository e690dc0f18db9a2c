"""One item from its wake-up to its end: real ledger, real S3, the tiny model in this process."""

import contextlib
import hashlib
import io
import itertools
import queue
import signal
import threading
import time
import uuid
from collections import Counter
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from PIL import Image, ImageChops, ImageStat
from safetensors.torch import load_file, save_file

from shared.adapters.identity import sha256_of
from shared.errors import (
    DeviceFault,
    ItemCanceled,
    LedgerUnavailable,
    OutOfMemory,
    RunError,
    SourceUnavailable,
    StorageUnavailable,
    WeightsLost,
)
from shared.job import AdapterRef, ItemSpec, Progress, State, adapter_key
from shared.ledger import Ledger, keys
from shared.ledger.usage_rows import Usage
from shared.ledger.workers import OUTAGE_REPORT_MS
from shared.metrics.tally import PROCESS
from shared.provenance.local_certificate import write_local_certificate
from shared.provenance.signature import has_signature, read_signature
from shared.provenance.signer import open_signer
from shared.settings import ModelSettings, ProvenanceSettings
from shared.sources.cache import FileCache
from shared.sources.remote_file import Pin
from worker.consumer import device_faults, image_file, item_run
from worker.consumer.adapter_files import AdapterFiles
from worker.consumer.background import BackgroundUploader
from worker.consumer.device_time import DeviceTime
from worker.consumer.heartbeat import Heartbeat
from worker.consumer.lease import Lease
from worker.consumer.wakeup import run_next
from worker.consumer.worker import Worker
from worker.consumer.worker_state import WorkerState
from worker.model.demo_model import write_tiny_adapter, write_tiny_checkpoint
from worker.model.load import load_components
from worker.rendering.renderer import Renderer


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    write_tiny_checkpoint(folder)
    return folder


@pytest.fixture(scope="module")
def renderer(checkpoint):
    model = ModelSettings(path=str(checkpoint), text_encoder=str(checkpoint / "text_encoder"), precision="fp32")
    return Renderer(load_components(model, device=torch.device("cpu"), hf_token=None), prompt_cache=4)


@pytest.fixture
def worker(redis_client, redis_url, s3, settings, adapter_root, renderer, make_worker):
    made = settings(
        redis={"url": redis_url},
        storage=s3.storage.model_dump(),
        s3=s3.s3.model_dump(),
        adapters={"root": adapter_root},
        queue={"renew_s": 0.05, "lease_ttl_s": 5, "max_attempts": 2},
    )
    return make_worker(made, Ledger(redis_client, made.queue), renderer)


@pytest.fixture
def adapter(checkpoint, adapter_root):
    path = adapter_root / "style.safetensors"
    write_tiny_adapter(path)
    return AdapterRef(path=path.name, sha256=sha256_of(path), size_bytes=path.stat().st_size, multiplier=1.0)


_jobs = itertools.count()


def accept(worker, *, adapters=(), steps=2, count=1, **fields):
    values = {
        "model": "flux2",
        "prompt": "a cat",
        "neg": "",
        "width": 64,
        "height": 64,
        "requested_width": 64,
        "requested_height": 64,
        "seed": 1,
        "num_inference_steps": steps,
        "guidance_scale": 4.0,
        "adapters": tuple(adapters),
        "output_format": "png",
    }
    job_id = f"{uuid.uuid4().hex}-{next(_jobs)}"
    worker.ledger.accept(job_id, [ItemSpec.model_validate({**values, **fields})] * count, record={})
    return job_id


def item(worker, job_id):
    return worker.ledger.job(job_id).items[0]


def wakes(worker):
    return worker.ledger.redis.llen(keys.wake_list("flux2"))


def test_an_item_is_rendered_stored_and_committed(worker, adapter):
    job_id = accept(worker, adapters=[adapter])

    assert run_next(worker)

    done = item(worker, job_id)
    assert done.state is State.SUCCEEDED
    assert done.result.key == f"results/{job_id}/0/1/image.png"
    assert Image.open(io.BytesIO(worker.store.get(done.result.key))).size == (64, 64)
    assert done.result.adapters[0].sha256 == adapter.sha256
    assert done.result.adapters[0].layers_touched > 0


def test_a_small_copy_of_an_image_is_stored_next_to_it(worker):
    job_id = accept(worker, width=384, height=192)

    run_next(worker)

    result = item(worker, job_id).result
    assert result.thumbnail_key == f"results/{job_id}/0/1/thumbnail.webp"
    with Image.open(io.BytesIO(worker.store.get(result.thumbnail_key))) as thumbnail:
        assert (thumbnail.format, thumbnail.size) == ("WEBP", (320, 160))
        with Image.open(io.BytesIO(worker.store.get(result.key))) as image:
            difference = ImageChops.difference(thumbnail.convert("RGB"), image.resize((320, 160)))
    assert max(ImageStat.Stat(difference).mean) < 10


@pytest.mark.parametrize("fmt", ["png", "jpeg", "webp"])
def test_a_worker_with_a_certificate_signs_images_but_no_thumbnails(worker, tmp_path, fmt):
    made = write_local_certificate(tmp_path / "certificate", name="a studio", days=1)
    signer = open_signer(ProvenanceSettings(certificate=made.certificate, key=made.key))
    job_id = accept(worker, output_format=fmt)

    run_next(replace(worker, signer=signer))

    result = item(worker, job_id).result
    image = worker.store.get(result.key)
    signature = read_signature(image, trusted=made.authority.read_text())
    assert (signature.state, signature.signer) == ("trusted", "a studio")
    assert (result.sha256, result.size_bytes) == (hashlib.sha256(image).hexdigest(), len(image))
    assert not has_signature(worker.store.get(result.thumbnail_key))
    assert result.warnings == ()


@pytest.mark.parametrize("fails", ["to be made", "to be stored"])
def test_an_image_whose_thumbnail_fails_is_finished_without_one(worker, monkeypatch, fails):
    put = worker.store.put

    def put_images_only(key, data, *, content_type):
        if key.endswith("thumbnail.webp"):
            raise StorageUnavailable("PUT thumbnail: the store is away")
        put(key, data, content_type=content_type)

    def fail(image):
        raise OSError("encoder error -2")

    if fails == "to be made":
        monkeypatch.setattr(image_file, "encode_thumbnail", fail)
    else:
        monkeypatch.setattr(worker.store, "put", put_images_only)
    job_id = accept(worker)

    run_next(worker)

    done = item(worker, job_id)
    assert (done.state, done.result.thumbnail, done.result.thumbnail_key) == (State.SUCCEEDED, "", None)
    assert worker.store.exists(done.result.key)
    assert not worker.state.storage_failed


def test_the_watchdog_counts_the_upload_of_a_thumbnail_anew(worker, monkeypatch):
    uploads, report, put = [], Lease.report, worker.store.put

    def record_report(self, progress):
        uploads.append(progress.stage)
        report(self, progress)

    def record_put(key, data, *, content_type):
        uploads.append(key.rpartition("/")[2])
        put(key, data, content_type=content_type)

    monkeypatch.setattr(Lease, "report", record_report)
    monkeypatch.setattr(worker.store, "put", record_put)
    accept(worker)

    run_next(worker)

    assert uploads[-4:] == ["upload", "image.png", "upload", "thumbnail.webp"]


@pytest.fixture
def counted(worker):
    """A function that returns what the worker has counted in this test, from the ledger: fields end with labels."""
    # What other tests of this process left.
    PROCESS.take()

    def read():
        worker.heartbeat.send()
        return worker.ledger.metrics.read()

    return read


def test_the_stages_of_an_image_reach_the_ledger_with_a_heartbeat(worker, adapter, counted):
    # The renderer of this file may have the adapter merged at another strength.
    accept(worker, adapters=[adapter.model_copy(update={"multiplier": 0.3})], steps=3)

    run_next(worker)

    observed = Counter()
    for field, count in counted().items():
        if "|le=" in field:
            observed[field.partition("|flux2|exact|")[0]] += count
    stages = ("wait", "encode", "decode", "upload", "swap")
    assert observed == {"step_seconds": 3, **{f"{stage}_seconds": 1 for stage in stages}}
    assert counted()["adapter_files|root"] == 1


@pytest.mark.parametrize(
    ("error", "failures"),
    [(RunError("it broke"), {"attempt_failures|run_failed": 1}), (ItemCanceled("by the caller"), {})],
)
def test_a_failed_attempt_counts_by_its_code_and_a_canceled_one_does_not(
    worker, clock, make_result, counted, error, failures
):
    accept(worker)

    run_next(replace(worker, renderer=TimedRenderer(clock, make_result().pipeline, error)))

    counts = counted()
    assert {field: count for field, count in counts.items() if field.startswith("attempt_failures")} == failures
    assert not [field for field in counts if field.startswith("step_seconds")]


class TimedRenderer:
    """Renders for 3.5 s of a device by a clock that the test moves, after 40 s in which reference images arrive."""

    warm_key = "base"
    corrupted = 0

    def __init__(self, clock, pipeline, error):
        self.clock, self.pipeline, self.error = clock, pipeline, error

    def render(self, spec, adapters, *, on_progress, previews=None):
        for stage, seconds in (("fetch", 40), ("encode", 1), ("denoise", 2), ("decode", 0.5)):
            on_progress(Progress(stage=stage, step=0, steps=2))
            self.clock.advance(seconds)
        if self.error:
            raise self.error
        image = Image.new("RGB", (64, 64), "red")
        empty = dict.fromkeys(("adapters", "warnings", "references"), ())
        return SimpleNamespace(image=image, timings={}, pipeline=self.pipeline, tokens=None, **empty)


@pytest.mark.parametrize(
    ("error", "used"),
    [
        (None, Usage(images=1, pixel_steps=64 * 64 * 2, gpu_ms=3500)),
        (RunError("it broke"), Usage(wasted_gpu_ms=3500)),
        (OutOfMemory("it does not fit"), Usage(wasted_gpu_ms=3500)),
        (ItemCanceled("by the caller"), Usage(wasted_gpu_ms=3500)),
    ],
)
def test_the_time_on_the_device_is_counted_and_no_time_of_stores(worker, clock, make_result, monkeypatch, error, used):
    monkeypatch.setattr(item_run, "DeviceTime", partial(DeviceTime, lambda: clock.ms / 1000))
    renderer = TimedRenderer(clock, make_result().pipeline, error)
    put = worker.store.put
    monkeypatch.setattr(
        worker.store, "put", lambda *arguments, **options: (clock.advance(100), put(*arguments, **options))
    )
    accept(worker)

    run_next(replace(worker, renderer=renderer))

    assert sum(worker.ledger.usage.totals().values(), Usage()) == used


def test_the_stages_of_an_image_count_once_if_the_reply_to_its_commit_was_lost(
    worker, clock, make_result, counted, monkeypatch
):
    commit, lost = worker.ledger.commit, [LedgerUnavailable("Redis did not answer: reset by peer")]

    def commit_and_lose_the_first_reply(*arguments, **options):
        answer = commit(*arguments, **options)
        if lost:
            raise lost.pop()
        return answer

    monkeypatch.setattr(worker.ledger, "commit", commit_and_lose_the_first_reply)
    monkeypatch.setattr(item_run, "_REDIS_PAUSE_S", 0)
    accept(worker)

    run_next(replace(worker, renderer=TimedRenderer(clock, make_result().pipeline, None)))

    assert lost == []
    uploads = {field: count for field, count in counted().items() if field.startswith("upload_seconds|flux2|exact|le=")}
    assert list(uploads.values()) == [1]


def test_a_wake_up_without_work_does_nothing(worker):
    assert not run_next(worker)


@pytest.fixture
def full_device(renderer):
    """A function for `with`: inside the block, the transformer finds no memory, as on a device that is too small."""

    @contextlib.contextmanager
    def full_device():
        def fail(*_):
            raise torch.OutOfMemoryError("Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 23.64 GiB")

        handle = renderer._components.transformer.register_forward_pre_hook(fail)
        try:
            yield
        finally:
            handle.remove()

    return full_device


def with_memory(worker, name, gib):
    """Return the worker under another name, on a device of this size, after it has sent a heartbeat."""
    slot = replace(worker.slot, name=name, features=("merged", "large"), memory_bytes=gib * 2**30)
    made = replace(worker, slot=slot, heartbeat=Heartbeat(worker.ledger, slot, worker.state, worker.renderer))
    made.heartbeat.send()
    return made


def test_an_item_that_runs_out_of_device_memory_is_rendered_by_a_worker_with_more(worker, full_device, caplog):
    small, big = with_memory(worker, "small", 24), with_memory(worker, "big", 80)
    job_id = accept(worker)

    with full_device():
        assert run_next(small)

    waiting = item(worker, job_id)
    assert (waiting.state, waiting.attempt) == (State.QUEUED, 1)
    [warning] = [record for record in caplog.records if "does not fit on this device" in record.message]
    assert (warning.levelname, warning.slot, warning.item) == ("WARNING", "small", f"{job_id}:0")
    # The wake-up goes to the big worker only, and the small one claims nothing.
    redis = worker.ledger.redis
    assert [redis.llen(keys.wake_list(name)) for name in ("flux2", "flux2+large@24", "flux2+large@80")] == [0, 0, 1]
    assert not run_next(small)
    assert run_next(big)
    done = item(worker, job_id)
    assert (done.state, done.attempt, done.slot) == (State.SUCCEEDED, 2, "big")


def test_an_item_that_runs_out_of_device_memory_fails_if_no_worker_has_more_and_says_what_to_do(worker, full_device):
    small = with_memory(worker, "small", 24)
    job_id = accept(worker)

    with full_device():
        assert run_next(small)

    failed = item(worker, job_id)
    assert (failed.state, failed.attempt, failed.error.code) == (State.FAILED, 1, "out_of_memory")
    assert failed.error.message == (
        "64x64 does not fit on cpu: Tried to allocate 20.00 GiB; request a smaller size, or start a worker with more "
        "memory: this device has 24.0 GiB, and no live worker of flux2 that offers what the image requires has more"
    )
    assert not failed.error.retryable


def test_devices_that_wait_for_one_without_memory_end_with_their_process_which_is_no_fault_of_a_device(
    worker, clock, make_result
):
    small, _ = with_memory(worker, "small", 24), with_memory(worker, "big", 80)
    job_id, ended = accept(worker), []
    full = OutOfMemory("64x64 does not fit on two devices", ends_process=True)

    run_next(replace(small, renderer=TimedRenderer(clock, make_result().pipeline, full), exit_process=ended.append))

    assert ended == [70]
    waiting = item(worker, job_id)
    assert (waiting.state, waiting.attempt) == (State.QUEUED, 1)
    assert worker.ledger.queue_length("flux2+large") == 1
    assert worker.ledger.workers.count_faults("small", window_s=600) == 0


def test_an_item_that_fits_on_no_device_fails_on_the_biggest(worker, full_device):
    small, big = with_memory(worker, "small", 24), with_memory(worker, "big", 80)
    job_id = accept(worker)

    with full_device():
        assert run_next(small)
        assert run_next(big)

    failed = item(worker, job_id)
    assert (failed.state, failed.attempt) == (State.FAILED, 2)
    assert "this device has 80.0 GiB, and no live worker" in failed.error.message


def test_a_drained_worker_hands_a_large_item_to_one_of_the_same_size(worker, full_device):
    small, big = with_memory(worker, "small", 24), with_memory(worker, "big", 80)
    accept(worker)
    with full_device():
        run_next(small)
    worker.ledger.redis.delete(keys.wake_list("flux2+large@80"))
    claim = worker.ledger.claim_next(big.slot.pools, slot="big", boot=big.slot.boot, warm="base")

    big.requeue(claim)

    assert worker.ledger.queue_length("flux2+large") == 1
    assert worker.ledger.redis.llen(keys.wake_list("flux2+large@80")) == 1


def test_an_adapter_whose_values_are_not_finite_fails_the_item_at_once_naming_the_key(worker, adapter_root):
    ref, key = broken_adapter(adapter_root)
    job_id = accept(worker, adapters=[ref])

    run_next(worker)

    failed = item(worker, job_id)
    assert (failed.state, failed.error.code, failed.error.retryable) == (State.FAILED, "INVALID_LORA", False)
    assert key in failed.error.message
    assert failed.attempt == 1
    assert not worker.store.exists(f"results/{job_id}/0/1/image.png")


def test_a_missing_adapter_fails_the_item_and_leaves_the_pipeline_usable(worker, adapter, adapter_root):
    job_id = accept(worker, adapters=[adapter])
    (adapter_root / adapter.path).unlink()

    run_next(worker)
    after = accept(worker)
    run_next(worker)

    assert item(worker, job_id).error.code == "LORA_NOT_FOUND"
    assert item(worker, after).state is State.SUCCEEDED


@pytest.fixture
def remote(worker, adapter, adapter_root, tmp_path):
    """A worker with a file cache, the reference of an adapter at a link, and its source, which counts and can fail."""
    link = adapter.model_copy(
        update={"path": "hf://owner/repo/style.safetensors@main", "pin": "commit:1", "sha256": ""}
    )

    class Source:
        name, size_bytes, sha256, pin = link.path, link.size_bytes, None, Pin("commit", "1")
        error, starts = None, []

        def stream(self, start):
            self.starts.append(start)
            if self.error:
                raise self.error
            yield (adapter_root / adapter.path).read_bytes()[start:]

    source = Source()
    cache = FileCache(tmp_path / "cache", max_bytes=2**30, open_file=lambda name, pin: source, retry_budget_s=0.0)
    files = AdapterFiles(worker.settings.adapters, cache)
    return replace(worker, adapter_files=files), link, source


def test_an_adapter_at_a_link_is_downloaded_once_and_renders_the_same_image(remote, adapter):
    worker, link, source = remote
    jobs = [accept(worker, adapters=[ref]) for ref in (adapter, link, link)]

    while run_next(worker):
        pass

    results = [item(worker, job_id).result for job_id in jobs]
    pictures = [Image.open(io.BytesIO(worker.store.get(result.key))).tobytes() for result in results]
    assert pictures[0] == pictures[1] == pictures[2]
    assert ["fetch" in result.timings for result in results] == [False, True, True]
    assert [result.adapters[0].path for result in results] == [adapter.path, link.path, link.path]
    assert results[2].adapters[0].sha256 == adapter.sha256
    assert worker.renderer.warm_key == adapter_key([link])
    assert source.starts == [0]


def test_an_item_whose_source_does_not_answer_gets_another_attempt_and_then_fails(remote):
    worker, link, source = remote
    source.error = SourceUnavailable("huggingface.co did not answer; try again later")
    job_id = accept(worker, adapters=[link])

    while run_next(worker):
        pass

    failed = item(worker, job_id)
    assert (failed.state, failed.error.code, failed.attempt) == (State.FAILED, "source_unavailable", 2)
    assert source.starts == [0, 0]


def test_an_outage_of_a_source_costs_each_item_one_attempt_before_any_is_tried_again(remote):
    worker, link, source = remote
    source.error = SourceUnavailable("huggingface.co did not answer; try again later")
    jobs = [accept(worker, adapters=[link]) for _ in range(3)]

    for _ in jobs:
        run_next(worker)
    attempts = [item(worker, job_id).attempt for job_id in jobs]
    source.error = None
    while run_next(worker):
        pass

    assert attempts == [1, 1, 1]
    assert [item(worker, job_id).state for job_id in jobs] == [State.SUCCEEDED] * 3


def test_a_download_is_reported_before_its_first_byte_and_its_end_before_the_render(remote, monkeypatch):
    worker, link, source = remote
    stages, whole = [], source.stream
    report = Lease.report

    def listen(lease, progress):
        stages.append(progress.stage)
        report(lease, progress)

    def stream(start):
        stages.append("first byte")
        yield from whole(start)

    monkeypatch.setattr(Lease, "report", listen)
    source.stream = stream
    job_id = accept(worker, adapters=[link])

    run_next(worker)

    assert item(worker, job_id).state is State.SUCCEEDED
    assert stages[0] == "fetch"
    # Until the kernel of a render is watched again.
    assert stages.index("first byte") < stages.index("adapter") < stages.index("denoise")


def test_a_cancel_ends_a_download_and_the_next_job_fetches_only_the_rest(remote):
    worker, link, source = remote
    whole = source.stream
    first = accept(worker, adapters=[link])

    def slowly(start):
        data = b"".join(whole(start))
        yield data[:1000]
        worker.ledger.cancel(first)
        for place in range(1000, len(data)):
            time.sleep(0.01)  # a slow host
            yield data[place : place + 1]

    source.stream = slowly
    run_next(worker)
    source.stream = whole
    second = accept(worker, adapters=[link])
    run_next(worker)

    assert item(worker, first).state is State.CANCELED
    assert item(worker, second).state is State.SUCCEEDED
    assert source.starts[0] == 0
    assert source.starts[1] >= 1000


def test_the_adapters_of_the_next_item_are_downloaded_while_this_one_renders(remote):
    worker, link, source = remote
    accept(worker, steps=3)
    job_id = accept(worker, adapters=[link])

    run_next(worker)
    worker.prefetcher.wait()
    assert source.starts == [0]
    run_next(worker)

    assert item(worker, job_id).state is State.SUCCEEDED
    assert source.starts == [0]


def broken_adapter(adapter_root):
    """Write an adapter with a value that is not finite; return its reference and the key at fault."""
    path = adapter_root / "broken.safetensors"
    write_tiny_adapter(path)
    tensors = load_file(path)
    key = sorted(tensors)[3]
    tensors[key].view(-1)[0] = float("nan")
    save_file(tensors, path)
    return AdapterRef(path=path.name, sha256=sha256_of(path), size_bytes=path.stat().st_size, multiplier=1.0), key


def advertised(worker):
    """The warm key that other slots see for this worker."""
    [slot] = worker.ledger.workers.live_slots()
    return slot.warm


def test_a_refused_adapter_is_not_advertised_as_warm_after_its_item(worker, adapter_root):
    ref, _ = broken_adapter(adapter_root)
    job_id = accept(worker, adapters=[ref])

    run_next(worker)

    assert item(worker, job_id).error.code == "INVALID_LORA"
    assert advertised(worker) == worker.renderer.warm_key
    assert ref.sha256 not in advertised(worker)


def test_an_items_adapters_are_advertised_before_they_are_merged(worker, adapter):
    accept(worker, adapters=[adapter])
    seen = []

    run_next(watched(worker, lambda progress: seen.append((progress.stage, advertised(worker)))))

    stage, key = seen[0]
    assert stage == "encode"
    assert adapter.sha256 in key
    assert {key for _, key in seen} == {key}
    assert advertised(worker) == key == worker.renderer.warm_key


def test_a_canceled_item_stops_before_its_last_step(worker):
    job_id = accept(worker, steps=150)
    steps = []

    def cancel_at_the_third(progress):
        steps.append(progress.step)
        if progress.step == 3:
            worker.ledger.cancel(job_id)

    run_next(watched(worker, cancel_at_the_third))

    assert item(worker, job_id).state is State.CANCELED
    assert max(steps) < 150


def test_a_worker_that_lost_its_lease_writes_nothing(worker):
    job_id = accept(worker, steps=150)

    def lose_the_lease(progress):
        if progress.step == 3:
            worker.ledger.redis.hset(keys.item(f"{job_id}:0"), "fence", 7)

    run_next(watched(worker, lose_the_lease))

    assert item(worker, job_id).state is State.RUNNING
    assert item(worker, job_id).fence == 7
    assert not worker.store.exists(f"results/{job_id}/0/1/image.png")


def test_an_image_stored_after_a_cancel_is_removed(worker):
    job_id = accept(worker)

    class CancelingStore:
        """The real store; the caller cancels the job right after the upload."""

        delete_prefix = staticmethod(worker.store.delete_prefix)

        def put(self, key, data, *, content_type):
            worker.store.put(key, data, content_type=content_type)
            assert worker.store.exists(key)
            worker.ledger.cancel(job_id)

    # Renewals are far apart, so only the commit sees the cancel.
    run_next(watched(with_store(worker, CancelingStore()), lambda progress: None, renew_s=60))

    assert item(worker, job_id).state is State.CANCELED
    assert worker.store.list_objects(f"results/{job_id}", limit=10) == []


def test_a_late_cancel_keeps_the_images_that_were_finished_before(worker):
    job_id = accept(worker, count=2)
    run_next(worker)

    class CancelingStore:
        delete_prefix = staticmethod(worker.store.delete_prefix)

        def put(self, key, data, *, content_type):
            worker.store.put(key, data, content_type=content_type)
            worker.ledger.cancel(job_id)

    run_next(watched(with_store(worker, CancelingStore()), lambda progress: None, renew_s=60))

    first, second = worker.ledger.job(job_id).items
    assert (first.state, second.state) == (State.SUCCEEDED, State.CANCELED)
    assert worker.store.exists(first.result.key)
    assert not worker.store.exists(f"results/{job_id}/1/1/image.png")


def test_an_item_that_cannot_be_stored_is_tried_again_and_then_fails_as_retryable(worker):
    job_id = accept(worker)
    refusing = with_store(worker, RefusingStore())

    run_next(refusing)
    again = item(worker, job_id)
    assert (again.state, again.attempt, wakes(worker)) == (State.QUEUED, 1, 1)

    run_next(refusing)
    failed = item(worker, job_id)
    assert (failed.state, failed.error.code, failed.error.retryable) == (State.FAILED, "storage_unavailable", True)


def test_no_gpu_time_is_spent_while_the_store_does_not_answer(worker):
    job_id = accept(worker)
    unreachable = with_store(worker, UnreachableStore())
    run_next(unreachable)

    assert not run_next(unreachable)
    assert (item(worker, job_id).state, item(worker, job_id).attempt) == (State.QUEUED, 0)

    assert run_next(worker)
    assert item(worker, job_id).state is State.SUCCEEDED


def test_no_attempt_is_counted_while_the_store_is_away_however_many_workers_find_out(worker):
    first = accept(worker)
    ran = 0
    for number in range(5):
        # A worker that has just started, for which the report of the others has expired.
        worker.ledger.redis.delete(keys.STORAGE_OUTAGE)
        ran += run_next(with_store(another(worker, f"slot-{number}"), UnreachableStore()))

    assert ran == 5
    assert (item(worker, first).state, item(worker, first).attempt, item(worker, first).fence) == (State.QUEUED, 0, 5)
    assert run_next(another(worker, "sound"))
    assert (item(worker, first).state, item(worker, first).attempt) == (State.SUCCEEDED, 1)


def test_the_other_workers_probe_the_store_before_they_claim(worker):
    job_id = accept(worker)
    run_next(with_store(another(worker, "first"), UnreachableStore()))

    second = with_store(another(worker, "second"), UnreachableStore())
    assert not run_next(second)
    assert second.state.storage_failed
    assert (item(worker, job_id).state, item(worker, job_id).fence) == (State.QUEUED, 1)
    assert 0 < worker.ledger.redis.pttl(keys.STORAGE_OUTAGE) <= OUTAGE_REPORT_MS


def test_a_worker_that_reaches_the_store_probes_it_once_after_a_report(worker):
    for _ in range(3):
        accept(worker)
    unreachable = with_store(another(worker, "cut off"), UnreachableStore())
    run_next(unreachable)
    probing = ProbedStore(worker.store)
    sound = with_store(another(worker, "sound"), probing)

    for _ in range(3):
        assert run_next(sound)
        # It keeps its report up, which is no news to the others.
        assert not run_next(unreachable)

    assert probing.probes == 1


def test_without_a_report_no_claim_probes_the_store(worker):
    accept(worker)
    probing = ProbedStore(worker.store)

    assert run_next(with_store(worker, probing))

    assert probing.probes == 0


def test_a_new_report_asks_for_a_new_probe(worker):
    for _ in range(3):
        accept(worker)
    probing = ProbedStore(worker.store)
    sound = with_store(another(worker, "sound"), probing)

    for number in range(2):
        run_next(with_store(another(worker, f"cut off {number}"), UnreachableStore()))
        worker.ledger.redis.delete(keys.STORAGE_OUTAGE)
        worker.ledger.workers.report_storage_outage(is_new=True)
        assert run_next(sound)

    assert probing.probes == 2


def another(worker, name):
    """A second worker process on the same servers."""
    slot, state = replace(worker.slot, name=name), WorkerState()
    heartbeat = Heartbeat(worker.ledger, slot, state, worker.renderer)
    return Worker(**{**vars(worker), "slot": slot, "state": state, "heartbeat": heartbeat})


def test_the_images_of_earlier_claims_are_removed_once_the_item_has_ended(worker):
    job_id = accept(worker)
    first = worker.ledger.claim_next(["flux2"], slot="other", boot="b", warm="base")
    worker.store.put(f"results/{job_id}/0/1/image.png", b"late", content_type="image/png")
    worker.ledger.release(first, "retry")

    run_next(worker)

    assert item(worker, job_id).result.key == f"results/{job_id}/0/2/image.png"
    assert worker.store.exists(f"results/{job_id}/0/2/image.png")
    assert not worker.store.exists(f"results/{job_id}/0/1/image.png")


def test_a_draining_worker_claims_nothing(worker):
    job_id = accept(worker)
    worker.state.start_draining()

    assert not run_next(worker)

    assert item(worker, job_id).state is State.QUEUED


def test_a_black_image_is_a_failure_and_is_not_stored(worker):
    job_id = accept(worker)
    black = with_renderer(worker, BlackRenderer(worker.renderer))

    run_next(black)
    assert item(worker, job_id).state is State.QUEUED
    run_next(black)

    failed = item(worker, job_id)
    assert (failed.state, failed.error.code) == (State.FAILED, "blank_image")
    assert not worker.store.exists(f"results/{job_id}/0/1/image.png")


def test_a_poisoned_device_ends_the_process_and_the_item_goes_to_another_attempt(worker):
    job_id = accept(worker)
    ended = []
    poisoned = Worker(
        **{**vars(worker), "probe": lambda: "CUDA error: an illegal memory access", "exit_process": ended.append}
    )

    with pytest.raises(RuntimeError, match="illegal"):
        run_next(watched(poisoned, broken_kernel))

    assert ended == [70]
    assert (item(worker, job_id).state, item(worker, job_id).attempt, wakes(worker)) == (State.QUEUED, 1, 1)
    assert worker.ledger.workers.count_faults("test", window_s=600) == 1


def test_base_weights_that_cannot_be_restored_end_the_process(worker):
    job_id = accept(worker)
    ended = []
    losing = with_renderer(
        Worker(**{**vars(worker), "exit_process": ended.append}), WeightLosingRenderer(worker.renderer)
    )

    run_next(losing)

    assert ended == [70]
    assert (item(worker, job_id).state, item(worker, job_id).attempt, wakes(worker)) == (State.QUEUED, 1, 1)


def test_an_item_on_which_devices_fail_ends_as_gpu_fault(worker):
    job_id = accept(worker)

    for _ in range(2):
        process = restarted(worker, probe=lambda: "it did not answer", exit_process=lambda status: None)
        with pytest.raises(RuntimeError, match="illegal"):
            run_next(watched(process, broken_kernel))

    failed = item(worker, job_id)
    assert (failed.state, failed.error.code, failed.error.retryable) == (State.FAILED, "gpu_fault", True)
    # One item alone does not make the device a bad one.
    assert not device_faults.is_faulty(worker.ledger, "test")


def test_a_sound_device_is_not_blamed_for_an_items_error(worker):
    job_id = accept(worker)
    ended = []

    with pytest.raises(RuntimeError, match="illegal"):
        run_next(watched(Worker(**{**vars(worker), "exit_process": ended.append}), broken_kernel))

    assert ended == []
    assert item(worker, job_id).attempt == 1
    assert worker.ledger.workers.count_faults("test", window_s=600) == 0


def test_a_slot_whose_device_failed_on_two_items_takes_no_work_until_its_faults_expire(worker, wait_until):
    first, second = (accept(worker) for _ in range(2))
    for job_id in (first, second):
        claimed = worker.ledger.claim_next(["flux2"], slot="test", boot="b", warm="base")
        assert claimed.job_id == job_id
        device_faults.record_fault(worker, claimed, DeviceFault("it did not answer"))
    stop_signals = queue.SimpleQueue()
    trusted = []
    waiting = threading.Thread(target=lambda: trusted.append(device_faults.wait_until_trusted(worker, stop_signals)))

    waiting.start()
    wait_until(
        lambda: [slot.state for slot in worker.ledger.workers.live_slots()] == ["faulty"], what="the slot's report"
    )
    stop_signals.put(signal.SIGTERM)
    waiting.join(10)
    assert trusted == [False]

    worker.ledger.redis.delete(keys.faults("test"))
    assert device_faults.wait_until_trusted(worker, queue.SimpleQueue())
    assert [slot.state for slot in worker.ledger.workers.live_slots()] == ["ready"]
    worker.heartbeat.stop()


def test_a_stop_signal_that_came_while_redis_was_silent_ends_the_wait_for_a_faulty_device(worker):
    stop_signals = queue.SimpleQueue()
    stop_signals.put(signal.SIGTERM)

    assert not device_faults.wait_until_trusted(worker, stop_signals)


def test_a_kernel_that_hangs_ends_the_process_and_the_item_goes_to_another_attempt(worker):
    job_id = accept(worker, steps=2)
    ended = threading.Event()
    impatient = worker.settings.model_copy(
        update={"worker": worker.settings.worker.model_copy(update={"stall_s": 0.3})}
    )
    hanging = Worker(**{**vars(worker), "settings": impatient, "exit_process": lambda status: ended.set()})

    run_next(watched(hanging, lambda progress: ended.wait(10) if progress.step == 1 else None))

    assert ended.is_set()
    again = item(worker, job_id)
    assert (again.state, again.attempt) == (State.QUEUED, 1)
    # As the last renewal stated it: nothing else ends a hung kernel.
    assert worker.ledger.usage.totals()["default", "flux2"].wasted_gpu_ms > 100


def test_a_commit_outlasts_a_redis_that_is_away_for_longer_than_the_lease(worker):
    job_id = accept(worker)
    short = worker.settings.model_copy(update={"queue": worker.settings.queue.model_copy(update={"lease_ttl_s": 0.6})})

    # Tried each half second.
    run_next(with_ledger(Worker(**{**vars(worker), "settings": short}), failing_commits=4))

    assert item(worker, job_id).state is State.SUCCEEDED


def test_an_unexpected_error_is_recorded_requeued_and_raised(worker):
    job_id = accept(worker)

    def stumble(progress):
        raise ZeroDivisionError("a bug")

    with pytest.raises(ZeroDivisionError):
        run_next(watched(worker, stumble))

    assert item(worker, job_id).state is State.QUEUED
    with pytest.raises(ZeroDivisionError):
        run_next(watched(worker, stumble))
    assert item(worker, job_id).error.message == "ZeroDivisionError: a bug"


def test_a_commit_is_repeated_until_redis_answers(worker):
    job_id = accept(worker)
    flaky = with_ledger(worker, failing_commits=2)

    run_next(flaky)

    assert item(worker, job_id).state is State.SUCCEEDED


def test_a_requeued_item_wakes_another_worker(worker):
    job_id = accept(worker)
    claimed = worker.ledger.claim_next(["flux2"], slot="test", boot="b", warm="base")

    worker.requeue(claimed)

    assert (item(worker, job_id).state, item(worker, job_id).attempt) == (State.QUEUED, 0)
    assert wakes(worker) == 1


class PausedStore:
    """The real store, whose uploads wait for `go`."""

    def __init__(self, store):
        self._store = store
        self.asked, self.go = threading.Semaphore(0), threading.Event()

    def put(self, key, data, *, content_type):
        self.asked.release()
        assert self.go.wait(30)
        self._store.put(key, data, content_type=content_type)

    def __getattr__(self, name):
        return getattr(self._store, name)


@pytest.fixture
def storing(worker):
    """A worker that stores in a background thread, on a store whose uploads wait for `.store.go`."""
    made = Worker(**{**vars(worker), "store": PausedStore(worker.store), "uploader": BackgroundUploader()})
    yield made
    made.store.go.set()
    made.uploader.wait()


def test_the_next_item_renders_while_an_image_is_stored(storing):
    first, second = (accept(storing) for _ in range(2))
    rendered = []

    run_next(storing)
    assert storing.store.asked.acquire(timeout=10)
    other = threading.Thread(target=run_next, args=[watched(storing, lambda progress: rendered.append(progress.stage))])
    other.start()
    while "decode" not in rendered:
        assert other.is_alive()
    assert [item(storing, job).state for job in (first, second)] == [State.RUNNING, State.RUNNING]
    assert [claim.job_id for claim in storing.state.claims] == [first, second]

    storing.store.go.set()
    other.join(10)
    storing.uploader.wait()
    assert [item(storing, job).state for job in (first, second)] == [State.SUCCEEDED, State.SUCCEEDED]
    assert storing.state.claims == ()


def test_the_lease_of_an_image_that_is_stored_lives_on(storing, wait_until):
    job_id = accept(storing)
    run_next(storing)
    lease = storing.ledger.redis.zscore(keys.LEASES, f"{job_id}:0")

    wait_until(lambda: storing.ledger.redis.zscore(keys.LEASES, f"{job_id}:0") > lease, what="a renewal")
    storing.ledger.cancel(job_id)
    storing.store.go.set()
    storing.uploader.wait()

    assert item(storing, job_id).state is State.CANCELED
    assert not storing.store.exists(f"results/{job_id}/0/1/image.png")


def test_no_more_than_one_image_waits_to_be_stored(storing):
    jobs = [accept(storing) for _ in range(3)]
    run_next(storing)
    waiting = threading.Thread(target=lambda: (run_next(storing), run_next(storing)))
    waiting.start()
    assert storing.store.asked.acquire(timeout=10)

    waiting.join(1)
    assert waiting.is_alive()
    assert item(storing, jobs[2]).state is State.QUEUED

    storing.store.go.set()
    waiting.join(20)
    storing.uploader.wait()
    assert [item(storing, job).state for job in jobs] == [State.SUCCEEDED] * 3


def test_a_poisoned_device_costs_the_item_that_is_stored_no_attempt(storing):
    first, second = (accept(storing) for _ in range(2))
    run_next(storing)
    ended = []
    poisoned = Worker(**{**vars(storing), "probe": lambda: "CUDA error", "exit_process": ended.append})

    with pytest.raises(RuntimeError, match="illegal"):
        run_next(watched(poisoned, broken_kernel))

    assert ended == [70]
    assert [(item(storing, job).state, item(storing, job).attempt) for job in (first, second)] == [
        (State.QUEUED, 0),
        (State.QUEUED, 1),
    ]
    storing.store.go.set()
    storing.uploader.wait()
    assert item(storing, first).state is State.QUEUED
    assert not storing.store.exists(f"results/{first}/0/1/image.png")


def test_an_upload_that_fails_in_the_background_is_tried_again(storing):
    job_id = accept(storing)
    refusing = Worker(**{**vars(storing), "store": RefusingStore()})

    run_next(refusing)
    refusing.uploader.wait()

    assert (item(storing, job_id).state, item(storing, job_id).attempt) == (State.QUEUED, 1)
    assert storing.state.storage_failed


def test_an_image_that_no_thread_can_store_gives_its_lease_up(worker):
    job_id = accept(worker)

    class Exhausted:
        def wait(self):
            pass

        def submit(self, work):
            raise RuntimeError("can't start new thread")

    with pytest.raises(RuntimeError, match="can't start new thread"):
        run_next(Worker(**{**vars(worker), "uploader": Exhausted()}))

    assert worker.state.claims == ()
    # Nobody renews the lease any more, so that the reaper gives the item to another attempt.
    assert "flux2-lease" not in {thread.name for thread in threading.enumerate()}
    assert item(worker, job_id).state is State.RUNNING


def test_an_item_that_fails_for_another_reason_does_not_clear_a_storage_failure(storing):
    accept(storing)

    def stumble(progress):
        storing.state.record_storage_failure()  # as the uploader's thread would, for the item before
        raise ZeroDivisionError("a bug")

    with pytest.raises(ZeroDivisionError):
        run_next(watched(storing, stumble))

    assert storing.state.storage_failed


def test_an_item_that_may_have_ended_a_process_renders_alone(storing, wait_until):
    fresh, suspect = (accept(storing) for _ in range(2))
    taken = [storing.ledger.claim_next(["flux2"], slot="other", boot="b", warm="base") for _ in range(2)]
    assert [claim.job_id for claim in taken] == [fresh, suspect]
    storing.ledger.release(taken[0], "drain")
    storing.ledger.release(taken[1], "retry")
    rendered = []

    run_next(storing)
    assert storing.store.asked.acquire(timeout=10)
    other = threading.Thread(target=run_next, args=[watched(storing, lambda progress: rendered.append(progress.stage))])
    other.start()
    wait_until(lambda: [claim.job_id for claim in storing.state.claims] == [fresh, suspect], what="the second claim")
    other.join(0.5)
    assert rendered == []

    storing.store.go.set()
    other.join(20)
    storing.uploader.wait()
    assert [item(storing, job).state for job in (fresh, suspect)] == [State.SUCCEEDED, State.SUCCEEDED]


# The doubles below stand for failures outside: a bucket that is gone, a silent Redis, a fault during a render.


class RefusingStore:
    """An object store that answers but accepts no image."""

    def put(self, key, data, *, content_type):
        raise StorageUnavailable(f"PUT {key}: connection refused")

    def delete_prefix(self, prefix):
        return 0

    def check(self):
        pass


class ProbedStore:
    """The real store, which counts its probes."""

    def __init__(self, store):
        self._store = store
        self.probes = 0
        self.put, self.delete_prefix = store.put, store.delete_prefix

    def check(self):
        self.probes += 1
        self._store.check()


class UnreachableStore(RefusingStore):
    """An object store that cannot be reached."""

    def check(self):
        raise StorageUnavailable("PUT probe: connection refused")


class WrappedRenderer:
    """A renderer that passes another's state on."""

    def __init__(self, renderer):
        self._renderer = renderer

    @property
    def warm_key(self):
        return self._renderer.warm_key

    @property
    def corrupted(self):
        return self._renderer.corrupted


class WeightLosingRenderer(WrappedRenderer):
    """A renderer whose checkpoint file was overwritten."""

    def render(self, spec, adapters, *, on_progress, previews=None):
        raise WeightsLost("3 restored weights differ from those that were loaded")


class BlackRenderer(WrappedRenderer):
    """A renderer whose device returns zeros."""

    def render(self, spec, adapters, *, on_progress, previews=None):
        rendered = self._renderer.render(spec, adapters, on_progress=on_progress)
        return replace(rendered, image=Image.new("RGB", rendered.image.size))


def broken_kernel(progress):
    if progress.step == 1:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")


class PreparingRenderer(WrappedRenderer):
    """A renderer that records which items it is asked to prepare, and fails at it if `fails`."""

    def __init__(self, renderer, *, fails=False):
        super().__init__(renderer)
        self.render = renderer.render
        self.prepared = []
        self._fails = fails

    def prepare(self, spec, adapters, *, between):
        self.prepared.append((spec.prompt, [path.name for path in adapters]))
        if self._fails:
            raise RuntimeError("CUDA out of memory")


@pytest.mark.parametrize("fails", [False, True])
def test_while_an_item_renders_the_next_is_prepared_and_then_runs_even_if_that_failed(fails, worker, adapter):
    worker.renderer.swapper.activate([])  # else an adapter of the test before would go first
    renderer = PreparingRenderer(worker.renderer, fails=fails)
    worker = with_renderer(worker, renderer)
    first, second = accept(worker), accept(worker, adapters=[adapter], prompt="a dog")

    assert run_next(worker)
    worker.prefetcher.wait()
    assert item(worker, second).state is State.QUEUED
    assert run_next(worker)
    worker.prefetcher.wait()

    assert renderer.prepared == [("a dog", ["style.safetensors"])]
    assert [item(worker, job).state for job in (first, second)] == [State.SUCCEEDED] * 2


def restarted(worker, **parts):
    """The worker that follows in the same slot: its state is new."""
    state = WorkerState()
    heartbeat = Heartbeat(worker.ledger, worker.slot, state, worker.renderer)
    return Worker(**{**vars(worker), "state": state, "heartbeat": heartbeat, **parts})


def with_store(worker, store):
    return Worker(**{**vars(worker), "store": store})


def with_renderer(worker, renderer):
    return Worker(**{**vars(worker), "renderer": renderer})


def with_ledger(worker, *, failing_commits):
    class Flaky(Ledger):
        left = failing_commits

        def commit(self, claim, outcome, **options):
            if self.left:
                self.left -= 1
                raise LedgerUnavailable("Redis did not answer: reset by peer")
            return super().commit(claim, outcome, **options)

    return Worker(**{**vars(worker), "ledger": Flaky(worker.ledger.redis, worker.settings.queue)})


def watched(worker, look, *, renew_s=None):
    """A worker that calls `look` with each progress before it reports it."""

    class Watched(WrappedRenderer):
        def render(self, spec, adapters, *, on_progress, previews=None):
            def both(progress):
                look(progress)
                on_progress(progress)
                # The tiny model's steps are too short for the lease's thread to notice anything between them.
                time.sleep(0.02)

            return worker.renderer.render(spec, adapters, on_progress=both, previews=previews)

    changed = (
        worker.settings
        if renew_s is None
        else worker.settings.model_copy(update={"queue": worker.settings.queue.model_copy(update={"renew_s": renew_s})})
    )
    return Worker(**{**vars(worker), "renderer": Watched(worker.renderer), "settings": changed})


def test_the_result_of_a_prompt_that_was_cut_says_so(worker):
    job_id = accept(worker, prompt="a red fox " * 300, count=2)

    # The second image's prompt comes from the cache.
    assert run_next(worker)
    assert run_next(worker)

    for done in worker.ledger.job(job_id).items:
        assert done.result.tokens.prompt > 600
        assert (done.result.tokens.neg, done.result.tokens.limit) == (None, 512)
        [warning] = done.result.warnings
        assert "its end has no effect on the image, from '" in warning


def test_previews_of_an_image_are_sent_while_somebody_wants_them(worker):
    worker.ledger.previews.want()
    found = []

    def wait_for_preview(progress):
        """Let the lease's thread renew between two steps, as it does when steps take long."""
        if progress.stage == "denoise" and progress.step in (4, 8):
            until = time.monotonic() + 10
            while not (seen := worker.ledger.previews.read([item_id])) or seen[item_id].step != progress.step:
                assert time.monotonic() < until, "no preview came"
                time.sleep(0.005)
            found.append(seen[item_id])

    job_id = accept(worker, steps=12, width=128, height=64)
    item_id = f"{job_id}:0"
    # So that the first step already knows that previews are wanted.
    assert worker.ledger.previews.wanted()
    run_next(watched(worker, wait_for_preview, renew_s=0.01))

    assert [(preview.step, preview.steps) for preview in found] == [(4, 12), (8, 12)]
    with Image.open(io.BytesIO(found[0].image_webp)) as picture:
        assert (picture.format, picture.size) == ("WEBP", (16, 8))
    assert len(found[0].image_webp) < 4000
    assert item(worker, job_id).state is State.SUCCEEDED
