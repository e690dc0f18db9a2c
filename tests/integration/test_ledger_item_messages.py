"""Webhooks about items, and the events that a caller chooses, on a real Redis with a clock that the test moves."""

import pytest

from shared.job import ItemError
from shared.ledger import Ledger, keys
from shared.settings import QueueSettings

URL = "https://a.example/hook"
BROKEN = ItemError(code="run_failed", message="it broke", retryable=True)
ALL = ("request.*", "item.succeeded", "item.failed")


@pytest.fixture
def ledger(redis_client, clock):
    return Ledger(redis_client, QueueSettings(retention_s=100_000), clock_ms=clock)


@pytest.fixture
def run(ledger, item, make_result):
    """Accept a job whose items end with these outcomes."""

    def start(job_id, *outcomes, events):
        options = {"webhook_url": URL, "webhook_events": events}
        ledger.accept(job_id, [item()] * len(outcomes), record={"warnings": []}, **options)
        for outcome in outcomes:
            claim = ledger.claim_next(("flux2",), slot="gpu-0", boot="boot", warm="base")
            values = {"succeeded": make_result(), "failed": BROKEN, "canceled": None}
            ledger.commit(claim, values[outcome])

    return start


def reserve(ledger, limit=8):
    return list(ledger.outbox.reserve_due(reserve_s=25, limit=limit))


def deliver_all(ledger):
    names = []
    while messages := reserve(ledger):
        for message in messages:
            names.append(message.name)
            ledger.outbox.mark_delivered(message)
    return names


def test_each_item_and_the_end_of_the_job_have_a_message(ledger, run):
    run("job", "succeeded", "failed", "canceled", events=ALL)
    assert ledger.job("job").webhook.items_waiting == 2
    assert ledger.outbox.count_undelivered() == 3

    assert deliver_all(ledger) == ["#job:0", "#job:1", "job"]

    webhook = ledger.job("job").webhook
    assert (webhook.state, webhook.items_waiting, webhook.items_failed) == ("delivered", 0, 0)
    assert ledger.outbox.count_undelivered() == 0
    ended = ledger.ended_item("job", 1)
    assert (ended.model, ended.tenant, ended.item.error) == ("flux2", "default", BROKEN)
    assert ledger.ended_item("job", 7) is None


@pytest.mark.parametrize(
    ("outcome", "events", "sent"),
    [
        ("succeeded", (), ["job"]),
        ("succeeded", ("request.*",), ["job"]),
        ("succeeded", ("request.succeeded",), ["job"]),
        ("succeeded", ("request.failed", "request.canceled"), []),
        ("failed", ("request.failed", "item.succeeded"), ["job"]),
        ("failed", ("item.failed",), ["#job:0"]),
        ("succeeded", ("item.failed",), []),
        ("canceled", ("item.failed", "item.succeeded"), []),
    ],
)
def test_only_the_chosen_events_are_sent(ledger, run, outcome, events, sent):
    run("job", outcome, events=events)

    assert deliver_all(ledger) == sent
    assert ledger.job("job").webhook.state == ("delivered" if "job" in sent else "skipped")
    assert ledger.outbox.resend("job") == ("queued" if "job" in sent else "none")


def test_an_item_message_waits_is_given_up_and_keeps_the_record_until_then(ledger, clock, run):
    run("job", "succeeded", events=("item.succeeded",))
    [message] = reserve(ledger)
    assert (message.job_id, message.index, message.url, message.attempt) == ("job", 0, URL, 1)
    # Reserved: no other sender gets it.
    assert reserve(ledger) == []
    ledger.outbox.postpone(message, wait_s=5, error="answered 500", reached=True)
    clock.advance(200_000)
    assert ledger.forget_ended() == 0

    [message] = reserve(ledger)
    assert message.attempt == 2
    assert ledger.job("job").webhook.items_error == "answered 500"
    ledger.outbox.mark_failed(message, error="answered 410", reached=True)

    webhook = ledger.job("job").webhook
    assert (webhook.items_waiting, webhook.items_failed, webhook.items_error) == (0, 1, "answered 410")
    clock.advance(200_000)
    assert ledger.forget_ended() == 1


def test_a_host_gets_two_messages_at_a_time_of_either_kind(ledger, run):
    run("job", "succeeded", "succeeded", events=ALL)

    assert [message.name for message in reserve(ledger)] == ["#job:0", "#job:1"]


def test_processes_of_an_earlier_version_do_not_see_item_messages_and_lose_none(ledger, clock, run, redis_client):
    run("job", "succeeded", events=ALL)
    # They look here, and would drop what is no job.
    assert redis_client.zrange(keys.OUTBOX, 0, -1) == ["job"]
    # Their couriers take a message from its route, but the index heals.
    reserve(ledger, 0)
    redis_client.delete(f"{keys.OUTBOX}:messages:default|a.example:443")

    assert reserve(ledger) == []
    clock.advance(601)
    assert deliver_all(ledger) == ["#job:0", "job"]


def test_an_end_that_an_earlier_version_put_into_the_outbox_against_the_callers_choice_is_dropped(
    ledger, run, redis_client, clock
):
    run("job", "succeeded", events=("request.failed",))
    redis_client.zadd(keys.OUTBOX, {"job": clock.ms})

    assert deliver_all(ledger) == []

    assert ledger.job("job").webhook.state == "skipped"
    # A state that an API of an earlier version can show.
    assert redis_client.hget(keys.job("job"), "webhook_state") == "waiting"
    assert ledger.outbox.count_undelivered() == 0


def test_messages_of_a_job_that_an_earlier_version_forgot_leave_nothing(ledger, clock, run, redis_client):
    run("job", "succeeded", "failed", events=("item.succeeded", "item.failed"))
    [sent] = reserve(ledger, 1)
    # It knows no messages about items: one of these is being sent, and the other waits on its route.
    records = (keys.job("job"), keys.item("job:0"), keys.item("job:1"))
    redis_client.delete(*records)

    ledger.outbox.mark_failed(sent, error="answered 410", reached=True)
    assert reserve(ledger) == []
    clock.advance(26)
    assert reserve(ledger) == []

    assert ledger.outbox.count_undelivered() == 0
    assert not redis_client.exists(*records)


def test_a_message_about_an_item_that_was_forgotten_is_dropped(ledger, run, redis_client):
    run("job", "succeeded", events=("item.succeeded",))
    redis_client.delete(keys.item("job:0"))

    assert deliver_all(ledger) == []
    assert ledger.outbox.count_undelivered() == 0
