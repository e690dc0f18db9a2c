"""Submits with reference images take turns, and wait for them without a thread."""

import threading
import time

import anyio
import pytest

from api import reference_turns
from api.reference_turns import ReferenceTurns
from shared.errors import ReferenceCheckBusy
from shared.request import PromptItem

PLAIN, INLINE = [PromptItem(prompt="a")], [PromptItem(prompt="a", ctrl_img="iVBO")]
LINK = [PromptItem(prompt="a", ctrl_img_3="HTTPS://host/a.png")]


class Gate:
    """A call that blocks its thread until the gate opens."""

    def __init__(self):
        self.opened = threading.Event()
        self.inside = self.most = 0
        self.lock = threading.Lock()

    def __call__(self):
        with self.lock:
            self.inside += 1
            self.most = max(self.most, self.inside)
        self.opened.wait(10)
        with self.lock:
            self.inside -= 1
        return "done"


async def until(condition):
    with anyio.fail_after(10):
        while not condition():
            await anyio.sleep(0.005)


@pytest.mark.parametrize(("prompts", "others", "count"), [(INLINE, LINK, 4), (LINK, INLINE, 8)])
def test_each_kind_of_call_has_its_own_turns_and_calls_without_images_need_none(prompts, others, count):
    async def check():
        turns, gate, answers = ReferenceTurns(), Gate(), []

        async def call():
            answers.append(await turns.run(prompts, gate))

        async with anyio.create_task_group() as group:
            for _ in range(30):
                group.start_soon(call)
            await until(lambda: gate.inside == count)
            quick = [await turns.run(each, lambda: "quick") for each in (PLAIN, others)]
            gate.opened.set()
        return gate.most, quick, answers

    assert anyio.run(check) == (count, ["quick"] * 2, ["done"] * 30)


def test_a_call_that_gets_no_turn_in_time_is_asked_to_come_back_and_leaves_no_trace(monkeypatch):
    monkeypatch.setattr(reference_turns, "_MAX_WAIT_S", 0.05)

    async def check():
        turns, gate = ReferenceTurns(), Gate()
        async with anyio.create_task_group() as group:
            for _ in range(4):
                group.start_soon(turns.run, INLINE, gate)
            await until(lambda: gate.inside == 4)
            for _ in range(3):
                with pytest.raises(ReferenceCheckBusy):
                    await turns.run(INLINE, gate)
            gate.opened.set()
        started = time.monotonic()
        # Every turn is free again, also after a call that fails.
        for _ in range(9):
            with pytest.raises(ZeroDivisionError):
                await turns.run(INLINE, lambda: 1 / 0)
        return time.monotonic() - started

    assert anyio.run(check) < 5
