"""The figures of GET /metrics, collected from counts that a test gives."""

from types import SimpleNamespace

import pytest

from api.metrics.answers import count_answer
from api.metrics.items import collect_items
from api.metrics.reported import collect_reported
from api.metrics.sender import CountSender
from shared.catalog import POOLS
from shared.errors import LedgerUnavailable
from shared.ledger.backlog import PoolLoad
from shared.metrics.definitions import STORAGE_OUTAGES
from shared.metrics.tally import Tally


def ledger_with(**loads):
    """Return the part of a ledger that counts items, with these loads by pool."""
    empty = PoolLoad({}, {})
    return SimpleNamespace(backlog=SimpleNamespace(read=lambda pools: {**dict.fromkeys(POOLS, empty), **loads}))


def queued_of_flux2(ledger):
    items, _ = collect_items(ledger)
    wanted = {"state": "queued", "model": "flux2", "engine": "exact"}
    return {
        sample.labels["tenant"]: sample.value for sample in items.samples if wanted.items() <= sample.labels.items()
    }


def test_tenants_beyond_the_two_hundred_with_the_most_items_count_together():
    large = {f"large-{number}": 2 for number in range(5)}
    small = {f"small-{number}": 1 for number in range(198)}

    queued = queued_of_flux2(ledger_with(flux2=PoolLoad({**small, **large}, {})))

    # 200 tenants, the sum of the three others, and the tenant that always has a series.
    assert len(queued) == 202
    assert (queued["other"], sum(queued.values())) == (3, 208)
    assert all(queued[name] == 2 for name in large)


def test_the_default_tenant_keeps_its_items_however_few_they_are():
    large = {f"large-{number}": 2 for number in range(200)}

    queued = queued_of_flux2(ledger_with(flux2=PoolLoad({**large, "default": 1, "small": 1}, {})))

    assert (queued["default"], queued["other"], sum(queued.values())) == (1, 1, 402)


def test_a_tenant_that_is_called_other_keeps_its_items():
    large = {f"large-{number}": 2 for number in range(199)}

    queued = queued_of_flux2(ledger_with(flux2=PoolLoad({**large, "other": 5, "small": 1, "tiny": 1}, {})))

    assert queued["other"] == 7


def reported(**sums):
    """Return the samples that come from these sums by field, by name and labels."""
    ledger = SimpleNamespace(metrics=SimpleNamespace(read=lambda: sums))
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in collect_reported(ledger)
        for sample in family.samples
    }


def test_the_buckets_of_a_histogram_add_up_whatever_bounds_a_version_has():
    samples = reported(
        **{
            "decode_seconds|flux2|exact|le=100000": 3,
            # No bound of this version: between 0.2 and 0.3 s.
            "decode_seconds|flux2|exact|le=220000": 2,
            "decode_seconds|flux2|exact|le=inf": 1,
            "decode_seconds|flux2|exact|sum": 40_500_000,
            "metric_of_a_later_version|x|le=1": 7,
        }
    )

    buckets = {le: samples["flux2_decode_seconds_bucket", "flux2", "exact", le] for le in ("0.05", "0.1", "0.2", "0.3")}
    assert buckets == {"0.05": 0, "0.1": 3, "0.2": 3, "0.3": 5}
    assert samples["flux2_decode_seconds_bucket", "flux2", "exact", "+Inf"] == 6
    assert samples["flux2_decode_seconds_count", "flux2", "exact"] == 6
    assert samples["flux2_decode_seconds_sum", "flux2", "exact"] == 40.5
    assert not [name for name, *_ in samples if "later" in name]


def test_counters_of_known_events_are_there_before_anything_was_counted():
    samples = reported(**{"attempt_failures|stalled": 2})

    assert samples["flux2_attempt_failures_total", "stalled"] == 2
    assert samples[("flux2_storage_outages_total",)] == 0
    assert {name[1] for name in samples if name[0] == "flux2_worker_ends_total"} == {
        "drained",
        "drain_timeout",
        "fault",
    }


def test_an_api_process_sends_its_counts_again_until_redis_answers():
    sent, answers = [], iter([LedgerUnavailable("Redis did not answer"), None])

    def add(source, batch):
        sent.append((source, batch.number, dict(batch.counts)))
        if error := next(answers):
            raise error

    tally = Tally()
    sender = CountSender(SimpleNamespace(metrics=SimpleNamespace(add=add)), tally=tally)
    tally.count(STORAGE_OUTAGES)

    with pytest.raises(LedgerUnavailable):
        sender.send()
    sender.send()
    sender.send()

    assert len(sent) == 2
    assert sent[0] == sent[1]


def test_an_answer_counts_by_route_and_nothing_that_callers_invent_becomes_a_series():
    tally = Tally()
    known = {
        "method": "GET",
        "path": "/v1/requests/1/status",
        "route": SimpleNamespace(path="/v1/requests/{id}/status"),
    }

    count_answer(known, 200, seconds=0.004, tally=tally)
    # A route that has no such method.
    count_answer({**known, "method": "DELETE"}, 405, seconds=0.004, tally=tally)
    count_answer({"method": "BREW", "path": "/secret"}, 404, seconds=0.5, tally=tally)

    assert tally.take() == {
        "http_answers|GET|/v1/requests/{id}/status|200": 1,
        "http_seconds|GET|/v1/requests/{id}/status|le=5000": 1,
        "http_seconds|GET|/v1/requests/{id}/status|sum": 4000,
        "http_answers|other|/v1/requests/{id}/status|405": 1,
        "http_seconds|other|/v1/requests/{id}/status|le=5000": 1,
        "http_seconds|other|/v1/requests/{id}/status|sum": 4000,
        "http_answers|other|other|404": 1,
        "http_seconds|other|other|le=500000": 1,
        "http_seconds|other|other|sum": 500_000,
    }
