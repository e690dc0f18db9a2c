"""The forecast of a queue, on queues that are played by hand: times of items, and who claims what when."""

from dataclasses import replace

import pytest

from api.poll_interval import poll_after_s
from shared.job import ItemResult, PipelineReport
from shared.ledger.arrivals import ArrivalRate
from shared.ledger.job_forecast import ModelForecast, Place, WaitingItem
from shared.ledger.new_items import NewItems
from shared.ledger.playback import Playback, SlotGroup
from shared.ledger.queue_snapshot import Chunk, LaneSnapshot, PoolSnapshot, QueueSnapshot, RunningItem, ShareSnapshot
from shared.ledger.render_times import ItemTime, RenderTimes, measure
from shared.ledger.shape import Shape

# 4,608 tokens with those of the text, which weigh 4,608 * (1 + 4,608 / 44,000).
MEGAPIXEL = Shape(tokens=4096, steps=20, references=0)
WEIGHT = 4608 * (1 + 4608 / 44_000)
# A step of a megapixel takes 0.4 s, the rest 2 s with a deviation of 0.1 s, storing 0.5 s, and a swap 1 s.
ROWS = {
    "exact|bf16|48r0": f"10 {4e8 / WEIGHT:.0f} 0 2000000 100000 500000 0",
    "exact|bf16|swap": "10 1000000 0",
}
TIMES = RenderTimes(ROWS, {})
# 20 steps and the rest.
ITEM_MS = 10_000
NOW_MS = 1_700_000_000_000


def share(tenant, lanes, *, priority=5, running=0, last_claim_ms=0):
    """A share with lanes by adapters, each a list of accept orders."""
    made = [
        LaneSnapshot(name, name, False, [Chunk(order, NOW_MS, 1, MEGAPIXEL) for order in orders])
        for name, orders in lanes.items()
    ]
    return ShareSnapshot(priority, tenant, running, last_claim_ms, made, 0)


def snapshot(*pools, running=(), part=1.0):
    made = [PoolSnapshot(name, None, 1.0, shares) for name, shares in pools]
    return QueueSnapshot(NOW_MS, 1000, made, running, weight=1.0, part=part)


def starts_s(snapshot, *, groups, wait_bound_ms=1e9, **options):
    """Return the position and the start in s of each item of each lane, by pool, share and lane."""
    playback = Playback(snapshot, groups, TIMES, wait_bound_ms=wait_bound_ms, **options)
    return {
        (pool.pool, one.tenant, lane.name): [
            playback.queues[pool.pool].start_of(f"{one.priority}|{one.tenant}", lane.name, rank=rank, turn=0, order=1)
            for rank in range(len(lane.chunks))
        ]
        for pool in snapshot.pools
        for one in pool.shares
        for lane in one.lanes
    }


def slots(count, *pools):
    return SlotGroup(frozenset(pools or ["flux2"]), "bf16", count)


def approximately(*pairs_s):
    return [pytest.approx((position, 1000 * start_s), abs=2) for position, start_s in pairs_s]


def test_the_weight_of_a_step_follows_the_measured_steps_of_four_sizes():
    # docs/performance.md: 512x512, 1024x1024, 2048x2048, and 1024x1024 with one reference image, on one H100 and H200.
    measured_ms = {(1024, 0): 139, (4096, 0): 445, (16384, 0): 2044, (4096, 1): 933}
    unit = 445 / Shape(4096, 1, 0).step_weight

    for (tokens, references), step_ms in measured_ms.items():
        assert Shape(tokens, 1, references).step_weight * unit == pytest.approx(step_ms, rel=0.03)


def test_a_shape_is_read_as_it_was_written():
    assert Shape.parse(str(Shape(4096, 25, 1))) == Shape(4096, 25, 1)


def test_an_item_takes_its_steps_and_the_rest_as_measured():
    assert TIMES.of(MEGAPIXEL, pool="flux2", precision="bf16") == ItemTime(
        pytest.approx(ITEM_MS, abs=1), 500.0, pytest.approx(100.0)
    )
    half = Shape(tokens=4096, steps=10, references=0)
    assert TIMES.of(half, pool="flux2", precision="bf16").render_ms == pytest.approx(6000, abs=1)


def test_a_size_without_images_takes_as_long_as_its_tokens_weigh_in_the_nearest_one():
    small = TIMES.of(Shape(1024, 20, 0), pool="flux2", precision="bf16")

    # 1,536 tokens instead of 4,608, with less attention: 20 steps of 0.125 s instead of 0.4 s.
    assert small.render_ms == pytest.approx(20 * 400 * 1536 * (1 + 1536 / 44_000) / WEIGHT + 2000, abs=1)
    assert small.render_ms == pytest.approx(4500, abs=20)


def test_a_precision_that_was_never_measured_counts_as_another_and_a_pool_by_its_pace():
    assert TIMES.of(MEGAPIXEL, pool="flux2+merged", precision="fp8").render_ms == pytest.approx(ITEM_MS, abs=1)
    assert TIMES.of(MEGAPIXEL, pool="flux2+fast", precision="bf16") is None
    by_pace = RenderTimes(ROWS, {"flux2+fast": 3000.0})
    assert by_pace.of(MEGAPIXEL, pool="flux2+fast", precision="bf16").render_ms == 3000.0
    assert by_pace.of(None, pool="flux2+fast", precision="bf16").render_ms == 3000.0


def test_rows_that_another_version_measures_are_ignored():
    others = {"exact|bf16|48r0|upload": "10 1 0", "exact|bf16|video": "1 2 3", "exact|bf16|40r0": "10 1 0", "odd": ""}

    times = RenderTimes(ROWS | others, {})

    assert times.of(Shape(1024, 20, 0), pool="flux2", precision="bf16").render_ms == pytest.approx(4500, abs=20)


def test_a_slot_swaps_once_for_each_lane_and_claims_the_items_of_one_after_the_other():
    queue = snapshot(("flux2", [share("a", {"cats": [1, 3], "dogs": [2, 4]})]))

    found = starts_s(queue, groups=[slots(1)])

    # A swap of 1 s, two items of 10 s, a swap, two items.
    assert found["flux2", "a", "cats"] == approximately((0, 1), (1, 11))
    assert found["flux2", "a", "dogs"] == approximately((2, 22), (3, 32))


def test_two_slots_render_different_lanes():
    queue = snapshot(("flux2", [share("a", {"cats": [1, 3], "dogs": [2, 4]})]))

    found = starts_s(queue, groups=[slots(2)])

    assert found["flux2", "a", "cats"] == approximately((0, 1), (2, 11))
    assert found["flux2", "a", "dogs"] == approximately((1, 1), (3, 11))


def test_running_items_occupy_their_slots_and_leave_their_adapters_merged():
    running = [RunningItem(NOW_MS - 4000, "a", "flux2", "dogs", "dogs", MEGAPIXEL)]
    queue = snapshot(("flux2", [share("a", {"cats": [1], "dogs": [2]}, running=1)]), running=running)

    found = starts_s(queue, groups=[slots(1)])

    assert found["flux2", "a", "dogs"] == approximately((0, 6))
    assert found["flux2", "a", "cats"] == approximately((1, 17))


def test_tenants_take_turns_and_a_higher_priority_goes_first():
    queue = snapshot(
        (
            "flux2",
            [
                share("urgent", {"cats": [9]}, priority=0),
                share("a", {"cats": [1, 2, 3]}),
                share("b", {"cats": [4]}),
            ],
        )
    )

    found = starts_s(queue, groups=[slots(1)])

    assert [position for position, _ in found["flux2", "urgent", "cats"]] == [0]
    assert [position for position, _ in found["flux2", "a", "cats"]] == [1, 3, 4]
    assert [position for position, _ in found["flux2", "b", "cats"]] == [2]


def test_an_overdue_item_goes_before_a_higher_priority():
    queue = snapshot(
        ("flux2", [share("urgent", {"cats": [5, 6, 7]}, priority=0), share("a", {"cats": [1]}, priority=9)])
    )

    found = starts_s(queue, groups=[slots(1)], wait_bound_ms=15_000)

    # At 21 s, when the second urgent item ends, it has waited for 21 s.
    assert found["flux2", "a", "cats"] == approximately((2, 21))


def test_a_slot_that_serves_two_pools_claims_the_older_item():
    queue = snapshot(
        ("flux2", [share("a", {"cats": [1, 4]})]),
        ("flux2+merged", [share("a", {"cats": [2, 3]})]),
    )

    found = starts_s(queue, groups=[slots(1, "flux2", "flux2+merged")])

    assert [start for _, start in found["flux2", "a", "cats"]] == [pytest.approx(1000), pytest.approx(31_000, abs=2)]
    assert found["flux2+merged", "a", "cats"] == approximately((0, 11), (1, 21))


def test_lanes_whose_items_were_claimed_while_the_queue_was_read_are_left_out():
    # Of ten items, two lanes were looked at; the second is empty by now.
    looked_at = replace(share("a", {"cats": [1], "dogs": []}), rest=9)

    playback = Playback(snapshot(("flux2", [looked_at])), [slots(1)], TIMES, wait_bound_ms=1e9)

    assert playback.queues["flux2"].curve.claimed == 10


def test_jobs_that_come_as_before_take_turns_but_are_not_ahead_of_a_queued_item():
    shares = [share("a", {"cats": [1, 2, 3, 4]}), share("b", {"cats": [5]})]
    alone = starts_s(snapshot(("flux2", shares)), groups=[slots(1)])
    # Half of the slot's time.
    busy = starts_s(snapshot(("flux2", shares)), groups=[slots(1)], arrivals_per_ms=0.5 / ITEM_MS)

    assert alone["flux2", "a", "cats"][3] == pytest.approx((4, 41_000), abs=2)
    position, start_ms = busy["flux2", "a", "cats"][3]
    # The other tenant has two turns instead of one.
    assert (position, start_ms) == (4, pytest.approx(51_000, abs=3))
    # Nearly all of the jobs are of another model.
    others = starts_s(snapshot(("flux2", shares), part=0.01), groups=[slots(1)], arrivals_per_ms=0.5 / ITEM_MS)
    assert others["flux2", "a", "cats"][3] == pytest.approx((4, 41_000), abs=200)


def test_a_large_fleet_is_played_by_a_few_slots():
    lanes = {f"adapter-{number}": [number] for number in range(100)}
    queue = snapshot(("flux2", [share("a", lanes)]))

    found = starts_s(queue, groups=[slots(1000)])

    # There is a slot for each item.
    assert max(start_ms for starts in found.values() for _, start_ms in starts) < 1000 + ITEM_MS / 5


def test_a_job_ends_after_its_wait_its_steps_and_its_upload_within_its_range():
    queue = snapshot(("flux2", [share("a", {"cats": [1, 2]})]))
    forecast = ModelForecast(queue, [slots(1)], TIMES, wait_bound_ms=1e9, arrivals_per_ms=0.0)
    second = WaitingItem("job:1", "flux2", "5|a|cats", 2, MEGAPIXEL, None)
    running = WaitingItem("job:2", "flux2", "5|a|cats", 0, MEGAPIXEL, NOW_MS - 4000)

    later = forecast.ending_of(second, Place(rank=1), now_ms=NOW_MS + 500)
    sooner = forecast.ending_of(running, Place(), now_ms=NOW_MS)

    # It starts at 11 s, half a second of which has passed; it renders for 10 s and is stored for 0.5 s.
    assert later.left_ms == pytest.approx(21_000, abs=2)
    # Half of 10.5 s less, 7 tenths more, and 3 deviations of 0.1 s.
    assert (later.low_ms, later.high_ms) == (pytest.approx(15_450, abs=5), pytest.approx(28_650, abs=5))
    assert sooner.left_ms == pytest.approx(6500, abs=2)


def test_a_full_queue_has_room_when_as_many_items_were_claimed():
    shares = [share("a", {"cats": [1, 2, 3]}), share("b", {"cats": [4, 5]})]
    forecast = ModelForecast(snapshot(("flux2", shares)), [slots(1)], TIMES, wait_bound_ms=1e9, arrivals_per_ms=0.0)

    # a b a b a, each for 10 s after a swap of 1 s.
    assert forecast.claims_after_s("flux2", 1, tenant=None) == pytest.approx(1)
    assert forecast.claims_after_s("flux2", 3, tenant=None) == pytest.approx(21, abs=0.01)
    assert forecast.claims_after_s("flux2", 2, tenant="b") == pytest.approx(31, abs=0.01)
    assert forecast.claims_after_s("flux2", 1, tenant="nobody") is None
    assert forecast.claims_after_s("flux2+merged", 1, tenant=None) is None


def test_the_rate_of_arrivals_is_the_lower_one_of_the_last_three_and_ten_minutes():
    rate = ArrivalRate()
    rate.note(NOW_MS, 100)
    assert rate.per_ms == 0.0
    # A burst of 600 items in the first minute, and nothing since.
    rate.note(NOW_MS + 60_000, 700)
    assert rate.per_ms == 600 / 60_000
    rate.note(NOW_MS + 240_000, 700)
    assert rate.per_ms == 0.0
    rate.note(NOW_MS + 300_000, 712)
    # 12 in the last minute, as the one before is three minutes ago.
    assert rate.per_ms == 12 / 60_000
    # After the clock went back, nothing is known.
    rate.note(NOW_MS, 712)
    assert rate.per_ms == 0.0
    # Nor if Redis begins again.
    rate.note(NOW_MS + 60_000, 5)
    assert rate.per_ms == 0.0


def test_a_commit_measures_a_step_the_storing_and_a_swap(item, rendered):
    spec = item(width=1024, height=1024, num_inference_steps=20)
    timings = {"adapter": 1.0, "denoise": 8.0, "decode": 0.5, "encode_image": 0.2, "upload": 0.3}

    warm, swapped = (measure(spec, rendered(timings=timings, change=change)) for change in ("none", "swapped"))

    assert warm == {
        "model": "flux2",
        "row": "exact|fp32|48r0",
        "swap_row": "exact|fp32|swap",
        "step_ns": round(4e8 / WEIGHT),
        "denoise_us": 8_000_000,
        "store_us": 500_000,
        "swap_us": 0,
    }
    assert swapped == warm | {"swap_us": 1_000_000}


@pytest.mark.parametrize(("eta_s", "after_s"), [(None, 1), (0.0, 1), (14.0, 1), (60.0, 6), (1000.0, 30)])
def test_a_job_is_polled_after_a_tenth_of_what_it_has_left(eta_s, after_s):
    assert poll_after_s(eta_s) == after_s


@pytest.fixture
def rendered():
    """Describe an image with these timings."""

    def make(*, timings, change):
        pipeline = PipelineReport(
            engine="exact",
            precision="fp32",
            base_revision="r",
            device="cpu",
            adapter_mode="merged",
            change=change,
            versions={},
        )
        return ItemResult(
            key="k",
            format="png",
            content_type="image/png",
            width=1024,
            height=1024,
            sha256="00",
            size_bytes=1,
            timings=timings,
            adapters=(),
            pipeline=pipeline,
        )

    return make


def eta_s(new, queue, groups):
    """Return when the last of the new items ends, and how long they occupy devices."""
    forecast = ModelForecast(new.add_to(queue), groups, TIMES, wait_bound_ms=1e9, arrivals_per_ms=0)
    endings = [forecast.ending_of(item, place, now_ms=NOW_MS) for item, place in new.last_items(queue)]
    return max(ending.left_ms for ending in endings) / 1000, new.device_s(groups, TIMES)


def test_items_that_may_come_end_after_a_swap_for_each_adapter_list_and_the_time_of_each_item():
    new = NewItems("flux2", "a", 5, shapes={MEGAPIXEL: 3}, lists=2)

    # Each list: a swap of 1 s and three items of 10 s; storing the last takes 0.5 s.
    assert eta_s(new, snapshot(), [slots(1)]) == pytest.approx((62.5, 62), abs=0.01)
    assert eta_s(new, snapshot(), [slots(2)]) == pytest.approx((31.5, 62), abs=0.01)
    # The slots of another pool do not serve them.
    assert eta_s(new, snapshot(), [slots(1), slots(3, "flux2+fast")]) == pytest.approx((62.5, 62), abs=0.01)


def test_items_that_may_come_wait_behind_those_of_their_tenant_and_take_turns_with_others():
    new = NewItems("flux2", "a", 5, shapes={MEGAPIXEL: 3}, lists=1)
    own = snapshot(("flux2", [share("a", {"x": range(1, 5)})]))
    other = snapshot(("flux2", [share("b", {"x": range(1, 101)})]))
    first = snapshot(("flux2", [share("b", {"x": range(1, 5)}, priority=0)]))

    # 41 s for the four items with other adapters, and 31.5 s for the three.
    assert eta_s(new, own, [slots(1)])[0] == pytest.approx(72.5, abs=0.01)
    assert eta_s(new, first, [slots(1)])[0] == pytest.approx(72.5, abs=0.01)
    # Of a hundred items, about as many of the other tenant's come before each of the three.
    assert 31.5 < eta_s(new, other, [slots(1)])[0] < 90


def test_many_adapter_lists_that_may_come_take_as_long_as_few_larger_ones():
    many = NewItems("flux2", "a", 5, shapes={MEGAPIXEL: 1}, lists=200)

    eta, device = eta_s(many, snapshot(), [slots(1)])

    # 200 items; of the 200 swaps, the played queue has some.
    assert device == pytest.approx(2200, abs=0.01)
    assert 2000 < eta <= 2201


def test_nothing_is_known_of_items_that_may_come_while_nothing_is_measured():
    new = NewItems("flux2", "a", 5, shapes={MEGAPIXEL: 1}, lists=1)
    unknown = RenderTimes({}, {})
    forecast = ModelForecast(new.add_to(snapshot()), [slots(1)], unknown, wait_bound_ms=1e9, arrivals_per_ms=0)

    assert new.device_s([slots(1)], unknown) is None
    assert [forecast.ending_of(item, place, now_ms=NOW_MS) for item, place in new.last_items(snapshot())] == [None]
