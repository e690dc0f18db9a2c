"""GET /metrics over real HTTP: the figures that a fleet leaves in the ledger."""

import pytest
from prometheus_client.parser import text_string_to_metric_families

from shared.ledger import Submission


@pytest.fixture
def samples(api):
    """A function that scrapes the API and returns each value of a metric by its labels, as one sorted tuple."""

    def scrape(name):
        families = text_string_to_metric_families(api.http.get("/metrics").text)
        return {
            tuple(sorted(sample.labels.items())): sample.value
            for family in families
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


def test_items_are_counted_by_state_model_engine_and_tenant(api, item, samples):
    submissions = [
        Submission("a", [item(), item()], record={}, tenant="studio", priority=1),
        Submission("b", [item()], record={}, tenant="studio", priority=2),
        Submission("c", [item(engine="fast")], record={}, tenant="atelier"),
    ]
    api.ledger.accept_all(submissions)
    api.ledger.claim_next(["flux2"], slot="gpu-0", boot="boot", warm="base")

    assert items_of(samples, "queued") == {"default": 0, "studio": 2}
    assert items_of(samples, "running") == {"default": 0, "studio": 1}
    assert items_of(samples, "queued", engine="fast") == {"default": 0, "atelier": 1}


def test_an_empty_queue_still_has_a_series_for_each_model_and_engine(samples):
    values = samples("flux2_items")

    # Two states of five models and three engines.
    assert (len(values), set(values.values())) == (30, {0})
