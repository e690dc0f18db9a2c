"""Each fault of Redis that a newcomer meets has a remedy of its own."""

import pytest

from shared.errors import LedgerUnavailable, LedgerUnusable
from shared.finding import explain_redis


@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        ("Error 111 connecting to 10.0.0.5:6379. Connection refused.", "start Redis, or correct FLUX2_REDIS_URL"),
        ("Timeout connecting to server", "write redis:// in FLUX2_REDIS_URL"),
        ("Error 1 connecting to h:1. [SSL: WRONG_VERSION_NUMBER] wrong version number", "write redis://"),
        ("Error while reading from h:1 : (104, 'Connection reset by peer')", "write rediss:// in FLUX2_REDIS_URL"),
        ("Connection closed by server.", "write rediss:// in FLUX2_REDIS_URL"),
        ("Error 8 while writing to socket. EOF occurred in violation of protocol", "set ssl_certfile and ssl_keyfile"),
        ("[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed", "set ssl_ca_certs"),
        ("Error 13 connecting to /run/redis.sock. Permission denied.", "unixsocketperm"),
    ],
)
def test_a_redis_that_does_not_answer_has_the_remedy_of_its_words(words, remedy):
    detail, advice = explain_redis(LedgerUnavailable(f"Redis did not answer: {words}"))

    assert detail == f"Redis did not answer: {words}"
    assert remedy in advice


def test_a_server_that_cannot_hold_the_ledger_brings_its_own_remedy():
    assert explain_redis(LedgerUnusable("it is\n full of cats; remove; them")) == ("it is full of cats", "remove; them")
