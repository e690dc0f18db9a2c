"""The simulation of the scheduler: its virtual time, its reference, and each scenario in a small size."""

import json
import math

import pytest
import redis
import typer

from benchmarks.scheduling import __main__ as command
from benchmarks.scheduling.bars import Bar, Outcome
from benchmarks.scheduling.first_in_first_out import run_first_in_first_out
from benchmarks.scheduling.history import percentile
from benchmarks.scheduling.scenarios import SCENARIOS
from benchmarks.scheduling.service_times import ServiceTimes
from benchmarks.scheduling.simulation import Arrival, Simulation
from benchmarks.scheduling.timeline import Timeline
from benchmarks.scheduling.traffic import interleave, make_job, make_spec
from shared.local.redis_server import RedisServer
from shared.settings import QueueSettings

# 25 steps of 0.4 s, and 1 s each for a new prompt, a swap and storing; nothing is random.
ROUND_TIMES = ServiceTimes(
    encode_s=1.0, swap_s=1.0, begun_swap_s=0.5, step_s={1024 * 1024: 0.4}, decode_s=0.0, store_s=1.0, spread=0.0
)


@pytest.fixture(scope="module")
def quick_redis(tmp_path_factory):
    """A client of a Redis that does not wait for the disk; replies are text."""
    data = tmp_path_factory.mktemp("simulation")
    with RedisServer(data) as server, redis.Redis.from_url(server.url, decode_responses=True) as client:
        client.config_set("appendfsync", "no")
        yield client


@pytest.fixture
def client(quick_redis):
    quick_redis.flushall()
    return quick_redis


def test_actions_are_performed_in_the_order_of_their_times():
    timeline = Timeline()
    performed = []
    timeline.after(2.0, lambda: performed.append(("second", timeline.now_s())))
    timeline.after(1.0, lambda: timeline.after(1.5, lambda: performed.append(("third", timeline.now_s()))))

    timeline.run(until=lambda: len(performed) == 2)

    assert performed == [("second", 2.0), ("third", 2.5)]


def test_a_step_between_two_measured_sizes_is_interpolated_by_pixels():
    times = ServiceTimes(encode_s=0, swap_s=0, begun_swap_s=0, step_s={100 * 100: 1.0, 200 * 200: 4.0}, spread=0)

    sizes = (50, 100, 150, 300)  # 2,500, 10,000, 22,500 and 90,000 pixels
    steps_s = [times.step_s_of(size * size) for size in sizes]

    assert steps_s == pytest.approx([0.25, 1.0, 1.0 + 3.0 * 12_500 / 30_000, 1.0 + 3.0 * 80_000 / 30_000])


def test_the_reference_gives_the_oldest_item_to_the_slot_that_is_free_first():
    history = run_first_in_first_out(interleave(4, adapters=3), slots=2, times=ROUND_TIMES)

    # 0.5 s of a prepared swap and 10 s of steps each: two at once, twice. Slot 0 has adapters 0, 2, slot 1 has 1, 0.
    assert [item.started_s for item in history.items] == [0.0, 0.0, 10.5, 10.5]
    assert history.swaps == 4
    # And 1 s to store.
    assert history.end_s == 22.0


def test_a_slot_passes_the_time_of_its_items_and_swaps_once_for_each_adapter(client):
    simulation = Simulation(client, QueueSettings())
    simulation.add_slots(1, ROUND_TIMES)
    simulation.plan(interleave(4, adapters=2))

    history = simulation.run()

    # The first item is not prepared: 1 s for its prompt and 1 s for its swap. The second one is, and is warm. The third
    # has the other adapter, prepared.
    waits_s = sorted(history.waits_s())
    assert waits_s == pytest.approx([0.005, 12.005, 22.005, 32.505], abs=0.01)
    assert history.swaps == 2
    assert history.end_s == pytest.approx(43.505, abs=0.01)
    assert [(item.starts, item.commits) for item in history.items] == [(1, 1)] * 4


def test_a_slot_begins_to_swap_to_what_it_prepared_and_the_item_after_it_may_want_other_adapters(client):
    simulation = Simulation(client, QueueSettings())
    simulation.add_slots(1, ROUND_TIMES)
    later = make_job("urgent", [make_spec(9, adapter=7)], priority=0)
    # The first item renders from 0.005 s on: 2 s for its prompt and swap, and 10 s of steps. The slot looks ahead when
    # two of them are done.
    simulation.plan([*interleave(2, adapters=2), Arrival(5.0, [later])])

    history = simulation.run()

    # The urgent item finds the swap to the second one begun, so it takes a whole one.
    assert history["urgent:0"].started_s == pytest.approx(12.005, abs=0.01)
    assert history["job-1:0"].started_s == pytest.approx(24.005, abs=0.01)
    assert history.swaps == 3


def test_a_bar_is_missed_by_a_figure_beyond_it_and_by_one_that_is_no_number():
    assert [Bar("x", value, at_most=2.0).is_met for value in (2.0, 2.1, math.nan)] == [True, False, False]
    assert [Bar("x", value, at_least=2.0).is_met for value in (2.0, 1.9, math.nan)] == [True, False, False]


def test_the_command_exits_with_1_if_a_bar_is_missed(monkeypatch, capsys):
    missed = Outcome("short", {"items": 3}, [Bar("waits", 2.5, at_most=2.0)])
    monkeypatch.setattr(command, "SCENARIOS", {"short": lambda client, seed: missed})

    with pytest.raises(typer.Exit) as ended:
        command.main(only=None, seed=1, as_json=True)

    assert ended.value.exit_code == 1
    printed = json.loads(capsys.readouterr().out)
    assert printed["figures"] == {"items": 3}
    assert [(bar["name"], bar["is_met"]) for bar in printed["bars"]] == [("waits", False)]


def test_percentiles_are_interpolated():
    assert percentile(range(101), 99) == 99.0
    assert percentile([7.0], 99) == 7.0


@pytest.mark.parametrize(
    ("scenario", "sizes"),
    [
        ("interleaved", {"items": 60, "adapters": 6, "slots": 3}),
        ("starvation", {"rare": 4, "wait_bound_s": 150.0}),
        ("tenants", {"items": 4, "slots": 2}),
        ("priorities", {"items": 60, "urgent": 10, "slots": 4}),
        ("changing-fleet", {"items": 160}),
        ("lockstep", {}),
    ],
)
def test_a_small_fleet_meets_the_bars_of_each_scenario(client, scenario, sizes):
    outcome = SCENARIOS[scenario](client, 1, **sizes)

    assert [(bar.name, bar.value) for bar in outcome.bars if not bar.is_met] == []


def test_forecasts_are_compared_with_what_happened(client):
    outcome = SCENARIOS["mixed"](client, 1, jobs=8, slots=2)

    assert outcome.figures["forecasts"] >= outcome.figures["forecasts with an estimate"] > 2


def test_fleets_of_several_sizes_are_measured_on_one_queue(client):
    outcome = SCENARIOS["large-fleets"](client, 1, fleets=(4, 40), items=500, images=60)

    # An image takes 3 s, so 40 slots render 13.3 a second. A slot sends a heartbeat each 3 s, and two for each image.
    assert outcome.figures["40 slots: images a second"] == pytest.approx(40 / 3, rel=0.2)
    assert outcome.figures["40 slots: heartbeats an image"] == pytest.approx(3, rel=0.15)
    assert 100 < outcome.figures["bytes of a queued item"] < 2000
    assert 0 < outcome.figures["4 slots: claim p50 ms"] <= outcome.figures["4 slots: claim p99 ms"]
