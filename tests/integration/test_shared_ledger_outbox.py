"""The order in which webhooks are handed to senders, on a real Redis, with a clock that the test moves."""

import random

import pytest

from api.webhooks import RETRY_WAITS_S
from shared.ledger import Ledger, keys
from shared.ledger.outbox import GIVE_UP_AFTER_S
from shared.settings import QueueSettings

RESERVE_S = 25
HOUR_S = 3600
# What a process of version 2c85dcb runs: it knows only the set of due messages.
OLD_RESERVE = """
local reply = {}
for _, job in ipairs(redis.call('ZRANGEBYSCORE', 'flux2:outbox', '-inf', ARGV[1], 'LIMIT', 0, 8)) do
  redis.call('ZADD', 'flux2:outbox', ARGV[1] + 25000, job)
  redis.call('HINCRBY', 'flux2:job:' .. job, 'webhook_attempts', 1)
  reply[#reply + 1] = job
end
return reply
"""


@pytest.fixture
def ledger(redis_client, clock):
    return Ledger(redis_client, QueueSettings(), clock_ms=clock)


@pytest.fixture
def steady(monkeypatch):
    """Pauses without jitter."""
    monkeypatch.setattr(random, "uniform", lambda low, high: (low + high) / 2)


def end(ledger, job, *, tenant="a", host="a.example", at_ms=None):
    """Put the message of an ended job into the outbox, as any version does."""
    now = ledger.now_ms() if at_ms is None else at_ms
    fields = {"tenant": tenant, "webhook": f"https://{host}/hook", "webhook_state": "waiting", "finished_ms": now}
    ledger.redis.hset(keys.job(job), mapping=fields)
    ledger.redis.zadd(keys.OUTBOX, {job: now})


def reserve(ledger, limit=1):
    return list(ledger.outbox.reserve_due(reserve_s=RESERVE_S, limit=limit))


def jobs(messages):
    return [message.job_id for message in messages]


def watch(ledger, clock, seconds, *, until=lambda: False):
    """Let time pass with a courier that has no free sender, and a caretaker; both look once a second."""
    for _ in range(int(seconds)):
        clock.advance(1)
        ledger.reap()
        reserve(ledger, 0)
        if until():
            return


def attempts(ledger, job):
    return int(ledger.redis.hget(keys.job(job), "webhook_attempts") or 0)


def time_out(ledger, message, wait_s=5.0):
    ledger.outbox.postpone(message, wait_s=wait_s, error="ReadTimeout", reached=False)


def test_tenants_take_turns_however_many_messages_one_of_them_has(ledger, clock):
    for n in range(1000):
        end(ledger, f"a{n}", tenant="a", host=f"{n}.example")
    clock.advance(1)
    end(ledger, "b0", tenant="b", host="b.example")
    end(ledger, "c0", tenant="c", host="c.example")

    assert jobs(reserve(ledger, 4)) == ["a0", "b0", "c0", "a1"]


def test_one_step_of_the_script_moves_only_a_bounded_number_of_messages(ledger):
    for n in range(1000):
        end(ledger, f"job{n}", host=f"{n}.example")

    needs_more, messages, _ = ledger.outbox._session.run(
        "outbox_reserve", reserve_ms=1000, limit=8, give_up_ms=10**9, is_last_step=False
    )

    assert (needs_more, messages) == (1, [])
    assert ledger.redis.zcard(f"{keys.OUTBOX}:hosts:a") == 100


def test_a_host_gets_two_messages_at_a_time_from_all_processes(ledger, redis_client, clock):
    another = Ledger(redis_client, QueueSettings(), clock_ms=clock)
    for n in range(4):
        end(ledger, f"job{n}")
        clock.advance(0.001)
    end(ledger, "elsewhere", host="a.example:8443")

    first, elsewhere = reserve(ledger, 1) + reserve(another, 1), reserve(ledger, 8)
    assert (jobs(first), jobs(elsewhere)) == (["job0", "job1"], ["elsewhere"])
    assert reserve(another, 8) == []

    ledger.outbox.mark_delivered(first[1])
    assert jobs(reserve(another, 8)) == ["job2"]


@pytest.mark.parametrize(
    "url",
    [
        "https://a.example/other?x=1",
        "HTTPS://A.Example:443/",
        "https://user@a.example#x",
        "https://a.example",
        "https://a.example?x=https://b.example/",
    ],
)
def test_urls_of_one_host_and_port_are_one_host(ledger, url):
    for n in range(2):
        end(ledger, f"job{n}")
    reserve(ledger, 2)
    end(ledger, "third", host="placeholder")
    ledger.redis.hset(keys.job("third"), "webhook", url)

    assert reserve(ledger, 1) == []


def test_tenants_that_wait_for_the_same_host_take_turns(ledger, clock):
    for n in range(50):
        end(ledger, f"a{n:02}", tenant="a")
    reserved = reserve(ledger, 8)
    for tenant in "bc":
        end(ledger, f"{tenant}0", tenant=tenant)
    assert (jobs(reserved), reserve(ledger, 8)) == (["a00", "a01"], [])

    order = []
    for _ in range(6):
        ledger.outbox.mark_delivered(reserved.pop(0))
        reserved += reserve(ledger, 8)
        order.append(reserved[-1].job_id)

    assert order[:4] == ["a02", "b0", "c0", "a03"]
    assert order[4:] == ["a04", "a05"]


def test_a_host_that_does_not_answer_is_paused_and_its_messages_keep_their_attempts(ledger, clock, steady):
    for n in range(5):
        end(ledger, f"job{n}")
    end(ledger, "fine", host="fine.example")
    first, second, fine = sorted(reserve(ledger, 8), key=lambda message: message.job_id != "job0")
    if fine.job_id != "fine":
        second, fine = fine, second

    time_out(ledger, first, wait_s=HOUR_S)
    time_out(ledger, second, wait_s=HOUR_S)
    ledger.outbox.mark_delivered(fine)

    pauses_s = []
    for _ in range(8):
        began = clock.ms
        messages = []
        while not messages:
            clock.advance(1)
            messages = reserve(ledger, 8)
        # One message at a time finds out whether the host answers.
        assert len(messages) == 1
        pauses_s.append(round((clock.ms - began) / 1000))
        time_out(ledger, messages[0], wait_s=1)
    # Both first attempts began before the first pause, so they count once.
    assert pauses_s == [4, 8, 16, 32, 64, 128, 240, 240]
    assert sum(attempts(ledger, f"job{n}") for n in range(5)) == 2 + 8

    # Once it answers, messages flow again.
    watch(ledger, clock, 300)
    [probe] = reserve(ledger, 8)
    ledger.outbox.mark_delivered(probe)
    assert len(reserve(ledger, 8)) == 2


def test_a_pause_does_not_delay_a_message_that_is_alone(ledger, clock, monkeypatch):
    monkeypatch.setattr(random, "uniform", lambda low, high: high)
    end(ledger, "job0")
    [message] = reserve(ledger)

    for attempt, wait_s in enumerate(RETRY_WAITS_S[:5], start=1):
        assert message.attempt == attempt
        time_out(ledger, message, wait_s=wait_s)
        clock.advance(wait_s - 1)
        assert reserve(ledger) == []
        clock.advance(1)
        [message] = reserve(ledger)


def test_a_pause_is_for_one_tenant(ledger):
    end(ledger, "a0", tenant="a", host="shared.example")
    time_out(ledger, reserve(ledger)[0])
    end(ledger, "a1", tenant="a", host="shared.example")
    end(ledger, "b0", tenant="b", host="shared.example")

    assert jobs(reserve(ledger, 8)) == ["b0"]


def test_a_host_that_answers_with_an_error_is_not_paused(ledger):
    for n in range(3):
        end(ledger, f"job{n}")
    first, _ = reserve(ledger, 8)

    ledger.outbox.postpone(first, wait_s=5, error="answered 500", reached=True)

    assert jobs(reserve(ledger, 8)) == ["job2"]


def test_a_sender_that_died_leaves_its_place_at_the_host(ledger, clock):
    for n in range(3):
        end(ledger, f"job{n}")
    assert len(reserve(ledger, 8)) == 2

    watch(ledger, clock, RESERVE_S)

    assert [(message.job_id, message.attempt) for message in reserve(ledger, 8)] == [("job2", 1), ("job0", 2)]


def test_the_outcome_of_a_sender_that_was_too_late_does_not_touch_the_next_attempt(ledger, clock):
    end(ledger, "job0")
    [late] = reserve(ledger)
    watch(ledger, clock, RESERVE_S)
    [current] = reserve(ledger)
    assert (late.attempt, current.attempt) == (1, 2)

    time_out(ledger, late, wait_s=0)
    assert reserve(ledger, 8) == []
    ledger.outbox.mark_failed(late, error="answered 410", reached=True)
    assert ledger.outbox.count_undelivered() == 1

    # A receiver that confirmed it has it.
    ledger.outbox.mark_delivered(late)
    assert ledger.outbox.count_undelivered() == 0
    assert ledger.redis.hget(keys.job("job0"), "webhook_state") == "delivered"


def test_a_clock_that_is_set_back_does_not_delay_a_message(ledger, clock):
    end(ledger, "waiting", host="one.example")
    end(ledger, "sending", host="two.example")
    end(ledger, "dead", host="three.example")
    messages = {message.job_id: message for message in reserve(ledger, 3)}
    ledger.outbox.postpone(messages["waiting"], wait_s=60, error="answered 500", reached=True)
    time_out(ledger, messages["dead"], wait_s=60)

    clock.advance(-HOUR_S)
    ledger.reap()
    end(ledger, "new", host="four.example")
    [new] = reserve(ledger, 8)
    assert new.job_id == "new"
    ledger.outbox.mark_delivered(new)
    watch(ledger, clock, 24)
    assert reserve(ledger, 8) == []
    watch(ledger, clock, 1)
    [sending] = reserve(ledger, 8)
    assert (sending.job_id, sending.attempt) == ("sending", 2)
    ledger.outbox.mark_delivered(sending)
    watch(ledger, clock, 34)
    assert reserve(ledger, 8) == []
    watch(ledger, clock, 1)

    assert sorted(jobs(reserve(ledger, 8))) == ["dead", "waiting"]


def test_a_clock_that_is_set_ahead_does_not_hand_a_message_to_a_second_sender(ledger, clock):
    for n in range(3):
        end(ledger, f"job{n}")
    first, second = reserve(ledger, 8)
    watch(ledger, clock, 10)

    clock.advance(HOUR_S)
    ledger.reap()
    assert reserve(ledger, 8) == []
    watch(ledger, clock, RESERVE_S - 11)
    assert reserve(ledger, 8) == []

    ledger.outbox.mark_delivered(first)
    assert jobs(reserve(ledger, 8)) == ["job2"]
    # The second sender died: its reservation ends, counted from the step.
    watch(ledger, clock, 11)
    assert [(message.job_id, message.attempt) for message in reserve(ledger, 8)] == [(second.job_id, 2)]


def test_a_process_of_the_earlier_version_and_this_one_share_an_outbox(ledger, redis_client, clock):
    for n in range(4):
        end(ledger, f"job{n}")
        clock.advance(0.001)
    assert len(reserve(ledger, 2)) == 2
    # job2 and job3 wait on their route. No new process looks for so long that they are due for the old one.
    clock.advance(601)

    taken = redis_client.eval(OLD_RESERVE, 0, clock.ms)
    assert taken == ["job0", "job1", "job2", "job3"]
    assert reserve(ledger, 8) == []

    # The old process delivers one and dies.
    redis_client.zrem(keys.OUTBOX, "job2")
    watch(ledger, clock, RESERVE_S)
    first, second = reserve(ledger, 8)
    assert [(message.job_id, message.attempt) for message in (first, second)] == [("job0", 3), ("job1", 3)]
    ledger.outbox.mark_delivered(first)
    assert [(message.job_id, message.attempt) for message in reserve(ledger, 8)] == [("job3", 2)]
    assert ledger.outbox.count_undelivered() == 2


def test_a_lost_index_is_built_again(ledger, redis_client, clock):
    for n in range(3):
        end(ledger, f"job{n}")
    reserve(ledger, 0)
    for key in list(redis_client.scan_iter(f"{keys.OUTBOX}:*")):
        redis_client.delete(key)
    assert reserve(ledger, 8) == []

    clock.advance(601)

    assert jobs(reserve(ledger, 8)) == ["job0", "job1"]


def test_the_messages_of_a_host_that_never_answered_end_after_the_promised_time(ledger, clock, steady, caplog):
    assert sum(RETRY_WAITS_S) < GIVE_UP_AFTER_S
    end(ledger, "probe")
    [probe] = reserve(ledger)
    time_out(ledger, probe, wait_s=60)
    end(ledger, "old")
    for _ in range(7):
        clock.advance(GIVE_UP_AFTER_S / 8)
        end(ledger, "young")
        for message in reserve(ledger, 8):
            time_out(ledger, message, wait_s=60)
    clock.advance(GIVE_UP_AFTER_S / 8 - 60)
    reserve(ledger, 0)
    assert ledger.redis.hget(keys.job("old"), "webhook_state") == "waiting"

    watch(ledger, clock, 1500, until=lambda: ledger.redis.hget(keys.job("old"), "webhook_state") == "failed")

    assert ledger.redis.hmget(keys.job("old"), "webhook_state", "webhook_error") == [
        "failed",
        "given up: its host does not answer",
    ]
    assert ledger.redis.zscore(keys.OUTBOX, "old") is None
    assert ledger.redis.hget(keys.job("young"), "webhook_state") == "waiting"
    assert "webhook given up" in caplog.text


def test_a_message_whose_job_was_forgotten_leaves_the_outbox(ledger, redis_client):
    redis_client.zadd(keys.OUTBOX, {"gone": 0})

    assert reserve(ledger, 8) == []

    assert list(redis_client.scan_iter("flux2:job:*")) == []
    assert ledger.outbox.count_undelivered() == 0


def test_an_idle_outbox_leaves_no_keys(ledger, redis_client):
    for n in range(30):
        end(ledger, f"job{n}", tenant=f"t{n % 3}", host=f"{n % 5}.example")
    while messages := reserve(ledger, 4):
        for message in messages:
            ledger.outbox.mark_delivered(message)

    assert sorted(redis_client.scan_iter(f"{keys.OUTBOX}*")) == [f"{keys.OUTBOX}:clock"]


def test_a_message_that_is_sent_again_has_three_days_more(ledger, clock, steady):
    end(ledger, "old")
    clock.advance(GIVE_UP_AFTER_S)
    # The host has not answered for as long, so messages of this age would be given up untried.
    end(ledger, "new")
    key = f"{keys.OUTBOX}:pause:a|a.example:443"
    ledger.redis.hset(key, mapping={"failures": 9, "since_ms": clock.ms - GIVE_UP_AFTER_S * 1000, "until_ms": clock.ms})
    ledger.redis.hset(keys.job("old"), mapping={"items": 1, "webhook_attempts": 11, "webhook_state": "failed"})
    ledger.redis.zrem(keys.OUTBOX, "old")

    assert ledger.outbox.resend("old", tenant="b") == "unknown"
    assert ledger.outbox.resend("old", tenant="a") == "queued"
    assert ledger.outbox.resend("old", tenant="a") == "waiting"

    ledger.redis.zrem(keys.OUTBOX, "new")
    assert [(message.job_id, message.attempt) for message in reserve(ledger)] == [("old", 1)]
