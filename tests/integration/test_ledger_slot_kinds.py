"""The live slots are counted by what they are, also those whose processes keep no counts."""

import pytest

from shared.ledger import Ledger, keys
from shared.settings import QueueSettings

KINDS = f"{keys.PREFIX}kinds"


@pytest.fixture
def ledger(redis_client, clock):
    return Ledger(redis_client, QueueSettings(), clock_ms=clock)


@pytest.fixture
def count(redis_client, clock):
    """Counts as another API process that has just started, by the fields that a test names."""

    def count(*fields):
        kinds = Ledger(redis_client, QueueSettings(), clock_ms=clock).slot_kinds.count()
        return {tuple(getattr(kind, field) for field in fields): number for kind, number in kinds.items()}

    return count


@pytest.fixture
def beat_of_the_earlier_version(ledger, slot_report):
    """Stores a report without the indexes."""

    def beat(slot, **changes):
        ledger.redis.hset(keys.slot(slot), mapping=slot_report(**changes))
        ledger.redis.zadd(keys.SLOTS, {slot: ledger.now_ms()})

    return beat


def test_slots_are_counted_by_what_they_are(ledger, count, slot_report):
    for number in range(3):
        ledger.workers.beat(f"gpu-{number}", slot_report(features="merged,references", memory_bytes=str(141 * 2**30)))
    ledger.workers.beat("cpu", slot_report(model="flux2_klein_4b", precision="fp32"))

    assert count("model", "precision", "features", "memory_gib", "reads_compact") == {
        ("flux2", "bf16", ("merged", "references"), 141, True): 3,
        ("flux2_klein_4b", "fp32", None, 0, True): 1,
    }


def test_a_slot_counts_once_however_often_it_changes(ledger, count, clock, slot_report):
    for state in ("ready", "busy", "busy", "draining"):
        clock.advance(3)
        ledger.workers.beat("gpu-0", slot_report(state=state))
        assert count("state") == {(state,): 1}

    ledger.workers.remove("gpu-0")

    assert count("state") == {}
    assert not ledger.redis.exists(KINDS, keys.SLOT_KINDS)


def test_dead_slots_do_not_count_even_before_they_are_forgotten(ledger, count, clock, slot_report):
    for slot in ("dead", "alive"):
        ledger.workers.beat(slot, slot_report())
    clock.advance(10)
    ledger.workers.beat("alive", slot_report())
    clock.advance(10)

    assert count("state") == {("ready",): 1}
    assert set(ledger.redis.hkeys(keys.SLOT_KINDS)) == {"alive", "dead"}
    clock.advance(10)
    assert count("state") == {}


def test_slots_of_the_earlier_version_count_from_their_first_heartbeat_to_their_last(
    ledger, count, beat_of_the_earlier_version, slot_report
):
    ledger.workers.beat("new", slot_report())
    beat_of_the_earlier_version("old", state="busy")
    assert count("state") == {("ready",): 1, ("busy",): 1}
    assert count("reads_compact") == {(True,): 1, (False,): 1}

    beat_of_the_earlier_version("old", state="draining")
    assert count("state") == {("ready",): 1, ("draining",): 1}

    ledger.redis.delete(keys.slot("old"))
    ledger.redis.zrem(keys.SLOTS, "old")
    assert count("state") == {("ready",): 1}


def test_the_report_of_an_earlier_version_that_takes_over_a_name_counts(
    ledger, count, clock, beat_of_the_earlier_version, slot_report
):
    ledger.workers.beat("gpu-0", slot_report(state="ready"))
    clock.advance(1)
    beat_of_the_earlier_version("gpu-0", state="busy")

    # A heartbeat of any slot notices it; then each look at the counts does.
    ledger.workers.beat("gpu-1", slot_report(state="ready"))
    for state in ("busy", "faulty"):
        beat_of_the_earlier_version("gpu-0", state=state)
        for _ in range(20):
            ledger.workers.beat("gpu-1", slot_report(state="ready"))
        assert count("state") == {("ready",): 1, (state,): 1}


def test_kinds_of_a_later_version_count_without_the_fields_that_it_added(ledger, count, slot_report):
    for slot in ("gpu-0", "gpu-1"):
        ledger.workers.beat(slot, slot_report())
    [(kind, _)] = ledger.redis.hgetall(KINDS).items()
    later = f'{kind[:-1]},"more"]'
    ledger.redis.hset(keys.SLOT_KINDS, "gpu-1", later)
    ledger.redis.hset(KINDS, mapping={kind: 1, later: 1})

    assert count("model") == {("flux2",): 2}


def test_the_counts_of_a_fleet_that_keeps_them_are_read_in_one_step(ledger, slot_report):
    for number in range(200):
        ledger.workers.beat(f"gpu-{number}", slot_report())
    ledger.redis.config_resetstat()

    assert list(ledger.slot_kinds.count().values()) == [200]

    commands = {name: row["calls"] for name, row in ledger.redis.info("commandstats").items()}
    assert "cmdstat_evalsha" not in commands
    assert sum(commands.values()) < 10


def test_a_redis_that_takes_no_writes_gives_the_last_counts(
    ledger, count, beat_of_the_earlier_version, slot_report, redis_client
):
    ledger.workers.beat("new", slot_report())
    count()
    beat_of_the_earlier_version("old")
    redis_client.config_set("maxmemory", 1)
    try:
        assert count("state") == {("ready",): 1}
    finally:
        redis_client.config_set("maxmemory", 0)


def test_slots_that_fail_or_corrupt_their_weights_are_found_while_they_live(ledger, clock, slot_report):
    ledger.workers.beat("fine", slot_report())
    ledger.workers.beat("faulty", slot_report(state="faulty"))
    ledger.workers.beat("corrupted", slot_report(base_drift="3"))
    ledger.workers.beat("repaired", slot_report(state="faulty"))
    ledger.workers.beat("repaired", slot_report(state="ready"))

    assert [slot.name for slot in ledger.workers.unhealthy_slots()] == ["corrupted", "faulty"]
    ledger.workers.remove("faulty")
    clock.advance(16)
    assert ledger.workers.unhealthy_slots() == []
