"""Previews in Redis are stored while somebody wants them, and expire."""

import pytest

from shared.ledger import Ledger, previews
from shared.ledger.previews import Preview
from shared.local.ports import pick_free_port


@pytest.fixture
def ledger(redis_client, settings):
    return Ledger(redis_client, settings().queue)


def test_previews_are_wanted_for_half_a_minute_by_whoever_asks(ledger, redis_client, monkeypatch):
    monkeypatch.setattr(previews, "_ASKED_EVERY_S", 0)
    assert not ledger.previews.wanted()

    ledger.previews.want()

    assert ledger.previews.wanted()
    assert 25 < redis_client.ttl("flux2:preview_wanted") <= 30


def test_a_worker_asks_redis_once_in_two_seconds(ledger, redis_client):
    ledger.previews.want()
    assert ledger.previews.wanted()

    redis_client.delete("flux2:preview_wanted")

    assert ledger.previews.wanted()


def test_a_preview_is_read_as_it_was_stored_and_expires(ledger, redis_client):
    picture = bytes(range(256))

    ledger.previews.store("job:0", step=3, steps=25, image_webp=b"earlier")
    ledger.previews.store("job:0", step=7, steps=25, image_webp=picture)

    assert ledger.previews.steps(["job:0", "job:1"]) == {"job:0": 7}
    assert ledger.previews.read(["job:0", "job:1"]) == {"job:0": Preview(7, 25, picture)}
    assert 50 < redis_client.ttl("flux2:preview:job:0") <= 60


def test_previews_are_not_wanted_while_redis_is_away(settings):
    ledger = Ledger.connect(f"redis://127.0.0.1:{pick_free_port()}", settings().queue, timeout_s=1)

    assert not ledger.previews.wanted()
