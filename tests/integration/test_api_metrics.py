"""The figures of GET /metrics, collected from a real Redis with a clock that the test moves."""

import pytest
from prometheus_client import CollectorRegistry

from api.metrics.collector import LedgerCollector
from shared.job import ItemError
from shared.ledger import Ledger, Submission
from shared.settings import QueueSettings

BROKEN = ItemError(code="run_failed", message="it broke", retryable=True)


@pytest.fixture
def ledger(redis_client, clock):
    return Ledger(redis_client, QueueSettings(), clock_ms=clock)


@pytest.fixture
def samples(ledger):
    """A function that collects the figures and returns each value of a metric by its labels, as one sorted tuple."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(LedgerCollector(ledger))

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
