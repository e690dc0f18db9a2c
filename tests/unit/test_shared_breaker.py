"""The breaker: while Redis is known to be away, calls do not wait for it."""

import time

import pytest
import redis

from shared.errors import LedgerUnavailable
from shared.ledger.connection import Breaker
from shared.metrics.tally import PROCESS


def ask(breaker, asked, error=None):
    with breaker.calls():
        asked.append(error)
        if error is not None:
            raise error


def test_after_a_failure_calls_are_refused_without_being_tried():
    breaker, asked = Breaker(pause_s=60), []
    with pytest.raises(LedgerUnavailable, match="no route"):
        ask(breaker, asked, redis.ConnectionError("no route"))

    for _ in range(3):
        with pytest.raises(LedgerUnavailable, match="no route"):
            ask(breaker, asked)

    assert len(asked) == 1


def test_after_the_pause_one_call_tries_again_and_the_others_are_refused(wait_until):
    breaker, asked = Breaker(pause_s=0.05), []
    with pytest.raises(LedgerUnavailable):
        ask(breaker, asked, redis.TimeoutError("too late"))
    over = time.monotonic() + 0.05
    wait_until(lambda: time.monotonic() > over)

    with breaker.calls():
        with pytest.raises(LedgerUnavailable):
            ask(breaker, asked)
        assert len(asked) == 1

    ask(breaker, asked)
    assert len(asked) == 2


def test_each_call_that_was_tried_counts_as_unanswered_or_refused():
    breaker = Breaker(pause_s=60)
    PROCESS.take()

    for error in (redis.ReadOnlyError("a replica"), redis.ConnectionError("no route"), redis.ConnectionError("again")):
        with pytest.raises(LedgerUnavailable):
            ask(breaker, [], error)

    # The third one was not tried.
    assert PROCESS.take() == {"redis_errors|refused": 1, "redis_errors|unanswered": 1}


def test_other_errors_do_not_start_a_pause():
    breaker, asked = Breaker(pause_s=60), []
    with pytest.raises(ValueError, match="mine"):
        ask(breaker, asked, ValueError("mine"))

    ask(breaker, asked)

    assert len(asked) == 2


def test_without_a_pause_every_call_is_tried():
    breaker, asked = Breaker(pause_s=0), []
    for _ in range(3):
        with pytest.raises(LedgerUnavailable):
            ask(breaker, asked, redis.ConnectionError("refused"))

    assert len(asked) == 3
