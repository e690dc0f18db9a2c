"""A process counts in whole numbers by field, and sends them in batches that the ledger can recognise."""

import pytest

from shared.metrics.batches import Batches
from shared.metrics.definitions import COUNTERS, HISTOGRAMS, Counter, Histogram
from shared.metrics.tally import Tally

FAILURES = Counter("failures", "", ("code",))
STEPS = Histogram("step_seconds", "", ("model",), (0.1, 0.25, 1.0))


def test_a_value_counts_in_the_first_bucket_that_holds_it_and_in_the_sum():
    tally = Tally()

    tally.observe(STEPS, 0.25, "flux2", times=28)
    tally.observe(STEPS, 0.1, "flux2")
    tally.observe(STEPS, 1.5, "klein")

    assert tally.take() == {
        "step_seconds|flux2|le=250000": 28,
        "step_seconds|flux2|le=100000": 1,
        # 28 * 0.25 s + 0.1 s.
        "step_seconds|flux2|sum": 7_100_000,
        "step_seconds|klein|le=inf": 1,
        "step_seconds|klein|sum": 1_500_000,
    }


def test_counts_that_were_taken_are_not_taken_again():
    tally = Tally()
    tally.count(FAILURES, "run_failed", by=2)
    assert tally.take() == {"failures|run_failed": 2}

    tally.count(FAILURES, "run_failed")

    assert tally.take() == {"failures|run_failed": 1}
    assert tally.take() == {}


def test_a_metric_with_other_labels_than_its_own_is_a_bug():
    with pytest.raises(ValueError, match="failures has the labels"):
        Tally().count(FAILURES)


def test_a_batch_stays_the_next_one_until_it_is_confirmed():
    tally = Tally()
    batches = Batches(tally)
    assert batches.next() is None
    tally.count(FAILURES, "run_failed")
    first = batches.next()

    tally.count(FAILURES, "stalled")

    assert batches.next() is first
    batches.confirm(first)
    second = batches.next()
    assert (first.number, first.counts) == (1, {"failures|run_failed": 1})
    assert (second.number, second.counts) == (2, {"failures|stalled": 1})
    assert first.boot == second.boot != Batches(tally)._boot


def test_every_metric_has_its_own_name_and_ascending_bounds():
    names = [metric.name for metric in (*COUNTERS, *HISTOGRAMS)]

    assert len(names) == len(set(names))
    assert not [name for name in names if "|" in name]
    for histogram in HISTOGRAMS:
        assert list(histogram.bounds) == sorted(set(histogram.bounds))
