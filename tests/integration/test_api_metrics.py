"""The figures of GET /metrics, collected from a real Redis with a clock that the test moves."""

import pytest
from prometheus_client import CollectorRegistry

from api.metrics.collector import LedgerCollector
from shared.job import ItemError
from shared.ledger import Ledger, Submission
from shared.metrics.batches import Batches
from shared.metrics.definitions import STEP_SECONDS, STORAGE_ERRORS
from shared.metrics.tally import PROCESS, Tally
from shared.settings import QueueSettings

BROKEN = ItemError(code="run_failed", message="it broke", retryable=True)


@pytest.fixture
def ledger(redis_client, clock):
    return Ledger(redis_client, QueueSettings(), clock_ms=clock)


@pytest.fixture
def samples(ledger):
    """A function that collects the figures and returns each value of a metric by its labels, as one sorted tuple."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(LedgerCollector(ledger, most_slots=2))

    def scrape(name):
        return {
            tuple(sorted(sample.labels.items())): sample.value
            for family in registry.collect()
            for sample in family.samples
            if sample.name == name
        }

    return scrape


def items_of(samples, state, *, model="flux2", engine="exact"):
    """Return the items in a state by tenant."""
    return {
        labels["tenant"]: value
        for labels, value in ((dict(pairs), value) for pairs, value in samples("flux2_items").items())
        if (labels["state"], labels["model"], labels["engine"]) == (state, model, engine)
    }


def test_items_are_counted_by_state_model_engine_and_tenant(ledger, item, samples):
    submissions = [
        Submission("a", [item(), item()], record={}, tenant="studio", priority=1),
        Submission("b", [item()], record={}, tenant="studio", priority=2),
        Submission("c", [item(engine="fast")], record={}, tenant="atelier"),
    ]
    ledger.accept_all(submissions)
    ledger.claim_next(["flux2"], slot="gpu-0", boot="boot", warm="base")

    assert items_of(samples, "queued") == {"default": 0, "studio": 2}
    assert items_of(samples, "running") == {"default": 0, "studio": 1}
    assert items_of(samples, "queued", engine="fast") == {"default": 0, "atelier": 1}


def test_an_empty_queue_still_has_a_series_for_each_model_and_engine(samples):
    values = samples("flux2_items")

    # Two states of five models and three engines.
    assert (len(values), set(values.values())) == (30, {0})


def by(samples, name):
    """Return the values of a metric with one label, by the label's value."""
    return {pairs[0][1]: value for pairs, value in samples(name).items() if value}


def test_claims_releases_and_ends_count_by_their_reasons(ledger, item, samples, make_result):
    ledger.accept("a", [item(), item(), item()], record={})

    def claim():
        return ledger.claim_next(["flux2"], slot="gpu-0", boot="boot", warm="base")

    ledger.release(claim(), "drain")
    ledger.release(claim(), "retry", BROKEN)
    stale = claim()
    assert ledger.commit(stale, BROKEN) == "committed"
    assert ledger.release(stale, "outage") == "stale"
    ledger.commit(claim(), make_result())
    ledger.cancel("a")

    assert by(samples, "flux2_claims_total") == {"warm": 4}
    assert by(samples, "flux2_releases_total") == {"drain": 1, "retry": 1}
    # The third image was canceled while it waited.
    assert by(samples, "flux2_items_unsuccessful_total") == {"failed": 1, "canceled": 1}


def test_lost_leases_count_by_the_way_in_which_the_worker_was_missed(ledger, item, samples, clock):
    ledger.accept("a", [item(), item()], record={})
    for slot in ("gpu-0", "gpu-1"):
        ledger.claim_next(["flux2"], slot=slot, boot="first", warm="base")

    ledger.reclaim(slot="gpu-0", boot="second")
    clock.advance(20)
    ledger.reap()

    assert by(samples, "flux2_lost_leases_total") == {"reclaimed": 1, "expired": 1}


def test_webhooks_and_an_outage_of_the_storage_are_counted(ledger, item, samples, make_result):
    for job in ("a", "b"):
        ledger.accept(job, [item()], record={}, webhook_url="https://example.com/hook")
        ledger.commit(ledger.claim_next(["flux2"], slot="gpu-0", boot="boot", warm="base"), make_result())
    ledger.workers.report_storage_outage(is_new=True)
    (message,) = ledger.outbox.reserve_due(reserve_s=60, limit=1)

    ledger.outbox.mark_failed(message, error="410 Gone", reached=True)

    assert by(samples, "flux2_webhooks_total") == {"failed": 1}
    assert samples("flux2_webhooks_waiting") == {(): 1}
    assert samples("flux2_storage_outage") == {(): 1}


@pytest.fixture
def process():
    """The counts of one process and their batches."""

    class Process:
        def __init__(self):
            self.tally = Tally()
            self.batches = Batches(self.tally)

    return Process


def test_a_heartbeat_that_is_repeated_counts_once(ledger, samples, process, slot_report):
    first, second = process(), process()
    for worker in (first, second):
        worker.tally.observe(STEP_SECONDS, 0.5, "flux2", "exact", times=25)
    ledger.workers.beat("gpu-0", slot_report(), batch=first.batches.next())
    # Its answer was lost.
    ledger.workers.beat("gpu-0", slot_report(), batch=first.batches.next())
    ledger.workers.beat("gpu-1", slot_report(), batch=second.batches.next())

    first.batches.confirm(first.batches.next())
    first.tally.observe(STEP_SECONDS, 0.5, "flux2", "exact")
    ledger.workers.remove("gpu-0", batch=first.batches.next())

    image = (("engine", "exact"), ("model", "flux2"))
    assert samples("flux2_step_seconds_count") == {image: 51}
    assert samples("flux2_step_seconds_sum") == {image: 25.5}


def test_a_new_process_of_a_slot_counts_from_one_again(ledger, samples, process, slot_report):
    for _ in range(2):
        worker = process()
        worker.tally.count(STORAGE_ERRORS, "put")
        ledger.workers.beat("gpu-0", slot_report(), batch=worker.batches.next())

    assert by(samples, "flux2_storage_errors_total") == {"put": 2}


def test_counts_of_the_api_are_added_without_a_slot(ledger, samples, process, redis_client):
    api = process()
    api.tally.count(STORAGE_ERRORS, "get", by=3)

    for _ in range(2):
        ledger.metrics.add("api/1", api.batches.next())

    assert by(samples, "flux2_storage_errors_total") == {"get": 3}
    assert ledger.workers.live_slots() == []
    # The number of the batch is forgotten once nobody repeats it.
    assert 0 < redis_client.ttl("flux2:metrics_batch:api/1") <= 86_400


def test_fields_beyond_five_thousand_are_not_added(ledger, process, redis_client):
    redis_client.hset("flux2:metrics", mapping={f"old|{number}": 1 for number in range(5000)})
    worker = process()
    worker.tally.count(STORAGE_ERRORS, "put")
    redis_client.hset("flux2:metrics", "storage_errors|get", 1)
    worker.tally.count(STORAGE_ERRORS, "get")

    ledger.metrics.add("api/1", worker.batches.next())

    assert redis_client.hget("flux2:metrics", "storage_errors|get") == "2"
    assert not redis_client.hexists("flux2:metrics", "storage_errors|put")


def test_each_slot_of_a_small_fleet_has_series_and_of_a_larger_one_those_that_are_corrupted(
    ledger, samples, slot_report
):
    load = {"gpu_memory_used_bytes": "70000000000", "gpu_utilization": "0.97", "memory_bytes": "80000000000"}
    ledger.workers.beat("gpu-0", {**slot_report(base_drift="3"), **load})
    # A CPU, and a GPU that does not answer.
    ledger.workers.beat("gpu-1", {**slot_report(), **load, "gpu_memory_used_bytes": "", "gpu_utilization": ""})

    assert samples("flux2_slot_gpu_memory_used_bytes") == {(("slot", "gpu-0"),): 70e9}
    assert samples("flux2_slot_gpu_memory_bytes") == {(("slot", "gpu-0"),): 80e9}
    assert samples("flux2_slot_gpu_utilization_ratio") == {(("slot", "gpu-0"),): 0.97}
    assert samples("flux2_base_drift") == {(("slot", "gpu-0"),): 3, (("slot", "gpu-1"),): 0}

    ledger.workers.beat("gpu-2", slot_report())

    assert samples("flux2_slot_gpu_memory_used_bytes") == {}
    assert samples("flux2_base_drift") == {(("slot", "gpu-0"),): 3}
    assert sum(samples("flux2_slots").values()) == 3


def test_an_api_counts_its_answers_and_sends_the_counts_at_its_end(settings, redis_url, ledger, serve_api, tmp_path):
    made = settings(redis={"url": redis_url}, storage={"backend": "directory", "directory": tmp_path})
    PROCESS.take()

    with serve_api(made) as api:
        assert api.http.get("/v1/requests/none/status").status_code == 404
        assert api.http.get("/nothing").status_code == 404

    counts = {field: count for field, count in ledger.metrics.read().items() if field.startswith("http_answers")}
    assert counts == {"http_answers|GET|/v1/requests/{request_id}/status|404": 1, "http_answers|GET|other|404": 1}
