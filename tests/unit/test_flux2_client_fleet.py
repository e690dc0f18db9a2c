"""`flux2 top` shows what fits the terminal and counts the rest, and keeps the last reading while the API is away."""

import asyncio
import os
import signal
from types import SimpleNamespace

import pytest
from rich.console import Console

from flux2_client.fleet import Fleet, read_fleet
from flux2_client.fleet_view import FleetView, describe_fleet, describe_seconds
from flux2_client.live_fleet import LiveFleet
from flux2_client.models import Queue, QueueLine, Slot, SlotItem
from flux2_client.terminal_events import RESIZED, terminal_events
from shared.errors import ApiError


def slot(name, *, state="ready", **changes):
    facts = {"model": "flux2", "device": "cuda:0", "precision": "bf16", "engines": ("exact",)}
    return Slot(name=name, state=state, **facts, **changes)


def item(**changes):
    facts = {"request_id": "0123456789abcdef", "index": 2, "tenant": "acme", "adapters": "base", "attempt": 1}
    return SlotItem(started_at="2026-01-01T00:00:00.000Z", **facts | changes)


def line(tenant, adapters, queued, running=0, engine="exact"):
    return QueueLine(tenant=tenant, model="flux2", engine=engine, adapters=adapters, queued=queued, running=running)


def queue(*lines, slots=0, states=None, rate=0.0):
    sums = {"queued": sum(each.queued for each in lines), "running": sum(each.running for each in lines)}
    states = states or {}
    return Queue(**sums, images_per_minute=rate, slots=slots or sum(states.values()), slot_states=states, data=lines)


def draw(fleet, *, height=None, width=100, **options):
    console = Console(width=width, color_system=None, file=None, record=True, force_terminal=True)
    with console.capture() as captured:
        console.print(FleetView(fleet, "http://x", "12:00:00 UTC", **options), height=height)
    return captured.get().splitlines()


def rows(lines, first_word):
    start = next(number for number, text in enumerate(lines) if text.startswith(first_word))
    return [text.split() for text in lines[start + 1 :]]


def client_of(*slots, lines=()):
    async def iterate():
        for each in slots:
            yield each

    async def ask(**_):
        return queue(*lines, slots=len(slots))

    return SimpleNamespace(slots=lambda page_size: iterate(), queue=ask)


def test_slots_that_take_no_work_come_first_and_names_are_in_the_order_of_their_numbers():
    names = [slot("gpu-10"), slot("gpu-2"), slot("gpu-3", state="faulty"), slot("gpu-1", state="busy")]

    fleet = asyncio.run(read_fleet(client_of(*names), tenant=None))

    assert [each.name for each in fleet.slots] == ["gpu-3", "gpu-1", "gpu-2", "gpu-10"]


def test_a_screen_reads_no_more_slots_than_it_can_show():
    fleet = asyncio.run(read_fleet(client_of(*(slot(f"{number}") for number in range(5))), tenant=None, most_slots=2))

    assert (len(fleet.slots), fleet.left_out) == (2, 3)
    assert "and 3 more" in draw(fleet)[6]


def test_lines_of_a_tenant_follow_one_another_and_the_rest_of_it_comes_last():
    lines = [line("a", None, 9), line("b", "x", 8), line("b", "y", 7), line("a", "z", 1)]

    ordered = Fleet((), queue(*lines)).lines_by_tenant()

    assert [(each.tenant, each.adapters) for each in ordered] == [("b", "x"), ("b", "y"), ("a", "z"), ("a", None)]


def test_the_summary_states_the_rate_and_when_the_queue_is_empty():
    states = {"busy": 9_000, "ready": 1}
    fleet = Fleet((), queue(line("a", "x", 90, running=1), states=states, rate=6.0))

    # 90 images at 6 a minute.
    assert describe_fleet(fleet) == (
        "9,001 slots (9,000 busy, 1 ready)   90 waiting   1 running   6 images/min   queue empty in 15 min"
    )
    assert describe_fleet(Fleet((), queue())) == "0 slots   0 waiting   0 running   0 images/min"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(29, "less than a minute"), (90, "2 min"), (3600, "1 h 0 min"), (7500, "2 h 5 min"), (90_000, "1 d 1 h")],
)
def test_durations_are_written_in_two_units(seconds, text):
    assert describe_seconds(seconds) == text


def test_a_slot_shows_its_image_and_what_it_has_merged():
    busy = slot(
        "gpu-0", state="busy", adapters="a/x.safetensors + y.safetensors", item=item(stage="denoise", step=3, steps=25)
    )
    memory = {"memory_bytes": 80 * 10**9, "gpu_memory_used_bytes": 61 * 10**9}
    idle = slot("gpu-1", corrupted=2, gpu_utilization=0.83, **memory)
    fleet = Fleet((busy, idle), queue(slots=2))

    first, second, *_ = rows(draw(fleet, width=120), "slot")

    assert first[:10] == ["gpu-0", "busy", "-", "a/x", "+", "y", "acme", "01234567:2", "denoise", "3/25"]
    assert second[:8] == ["gpu-1", "ready,", "2", "corrupted", "83%", "61/80", "GB", "-"]


def test_what_does_not_fit_the_screen_is_counted():
    slots = tuple(slot(f"gpu-{number}") for number in range(40))
    lines = [line(f"tenant-{number}", "x", 40 - number) for number in range(30)]

    shown = draw(Fleet(slots, queue(*lines, slots=50)), height=24)

    # 17 lines for both tables: 8 of the 50 slots, 7 of the 30 lines of the queue, and a line for the rest of each.
    assert len(shown) == 24
    assert rows(shown, "slot")[7:9] == [["gpu-7", "ready", "-", "-", "-", "-", "-", "-"], ["and", "42", "more"]]
    assert [cells[:5] for cells in rows(shown, "tenant ")[6:8]] == [
        ["tenant-6", "x", "flux2", "34", "0"],
        ["and", "23", "more"],
    ]


def test_slots_that_are_scrolled_out_leave_room_for_the_others():
    slots = tuple(slot(f"gpu-{number}") for number in range(40))

    shown = rows(draw(Fleet(slots, queue(slots=40)), height=24, first=38), "slot")

    assert [cells[0] for cells in shown[:2]] == ["gpu-38", "gpu-39"]


def test_a_narrow_terminal_shortens_the_adapters_and_leaves_out_the_bars():
    busy = slot(
        "node-1/cuda:0",
        state="busy",
        adapters="team/styles/neon_city_at_night.safetensors",
        item=item(tenant="studio", stage="denoise", step=3, steps=25),
    )
    fleet = Fleet((busy,), queue(line("studio", "team/styles/neon_city_at_night", 7), slots=1))

    shown = draw(fleet, width=80)

    [cells] = [text.split() for text in shown if "cuda" in text]
    assert cells[:3] + cells[4:] == ["node-1/cuda:0", "busy", "-", "studio", "01234567:2", "denoise", "3/25"]
    assert cells[3].startswith("team/")
    assert cells[3].endswith("…")
    assert max(map(len, shown)) <= 80
    assert "━" not in "".join(shown)
    assert "━" in "".join(draw(fleet, width=120))


def test_texts_of_other_people_command_no_terminal():
    evil = slot("gpu\x1b[2J", adapters="[bold]x\n")
    shown = "\n".join(draw(Fleet((evil,), queue(line("[red]", "y\x1b", 1), slots=1))))

    assert "gpu\\x1b[2J" in shown
    assert "[bold]x\\n" in shown
    assert "[red]" in shown
    assert "y\\x1b" in shown


class Screen:
    """Stands in for `rich.live.Live`: keeps what it would draw, and then presses the next key."""

    def __init__(self, *keys):
        self.drawn, self.keys, self.live = [], list(keys), None

    def update(self, view, *, refresh):
        self.drawn.append(view)
        if self.keys:
            self.live.notify(self.keys.pop(0))


def run_live(screen, *readings):
    answers = list(readings)

    async def read():
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def run():
        screen.live = LiveFleet(screen, read, "http://x", interval_s=0)
        await screen.live.run()

    asyncio.run(run())


def test_keys_scroll_and_q_quits():
    fleet = Fleet(tuple(slot(f"{number}") for number in range(3)), queue(slots=3))
    screen = Screen("j", "\x1b[B", "j", "k", RESIZED, "?", "q")

    run_live(screen, fleet, *[fleet] * 100)

    # The last of three slots stays on the screen.
    assert [view.first for view in screen.drawn] == [0, 1, 2, 2, 1, 1, 1]


def test_the_last_reading_stays_on_the_screen_while_the_api_is_away():
    before, after = Fleet((), queue(slots=1)), Fleet((), queue(slots=2))
    screen = Screen()

    class Quits(Screen):
        def update(self, view, *, refresh):
            super().update(view, refresh=refresh)
            if view.fleet is after:
                self.live.notify("q")

    screen = Quits()
    run_live(screen, before, ApiError("away", retryable=True), after, *[after] * 100)

    assert [(view.fleet, view.failure) for view in screen.drawn[:3]] == [(before, ""), (before, "away"), (after, "")]
    assert "away" in draw(before, failure="away")[1]


def test_an_error_that_will_stay_ends_the_screen():
    fleet = Fleet((), queue())

    with pytest.raises(ApiError, match="revoked"):
        run_live(Screen(), fleet, ApiError("revoked", retryable=False))
    with pytest.raises(ApiError, match="away"):
        run_live(Screen(), ApiError("away", retryable=True))


def test_keys_of_a_terminal_and_its_changes_of_size_are_noticed():
    heard, leader = [], os.openpty()
    keyboard = os.fdopen(leader[1], "r")

    async def listen():
        noticed = asyncio.Event()

        def notify(event):
            heard.append(event)
            noticed.set()

        async def wait():
            await asyncio.wait_for(noticed.wait(), 5)
            noticed.clear()

        with terminal_events(keyboard, notify):
            # Three keys while the screen was drawn.
            os.write(leader[0], b"\x1b[B\x1b[6~q")
            await wait()
            os.kill(os.getpid(), signal.SIGWINCH)
            await wait()

    with keyboard:
        asyncio.run(listen())
    os.close(leader[0])

    assert heard == ["\x1b[B", "\x1b[6~", "q", RESIZED]


def test_input_that_is_no_terminal_has_no_keys(tmp_path):
    async def listen():
        with (tmp_path / "input").open("w+") as file, terminal_events(file, lambda event: None):
            return True

    assert asyncio.run(listen())
