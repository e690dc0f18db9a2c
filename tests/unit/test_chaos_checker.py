"""The checker finds each kind of breach: each history has exactly one fault."""

import io
from dataclasses import replace

import pytest
from PIL import Image

from chaos.checker import FinalState, check
from chaos.figures import kill_to_start, redis_to_start
from chaos.stub import picture
from shared.job import ItemResult, PipelineReport, SpecReport, State
from shared.ledger import ItemView, JobView
from shared.ledger.job_reader import DEADLINE_EXCEEDED
from shared.ledger.usage_rows import Usage
from shared.storage.directory import DirectoryStore

SEED = 7


def item(**changes):
    spec = SpecReport(
        prompt="a cat", requested_width=64, requested_height=64, seed=SEED, num_inference_steps=1, guidance_scale=4.0
    )
    result = ItemResult(
        key="results/job/0/1/image.png",
        format="png",
        content_type="image/png",
        width=16,
        height=16,
        sha256="00",
        size_bytes=1,
        timings={},
        adapters=(),
        pipeline=PipelineReport(
            engine="stub",
            precision="none",
            base_revision="none",
            device="none",
            adapter_mode="merged",
            change="none",
            versions={},
        ),
    )
    view = ItemView(
        index=0,
        state=State.SUCCEEDED,
        attempt=1,
        fence=1,
        spec=spec,
        steps=1,
        progress=None,
        result=result,
        error=None,
        queued_ms=0,
        started_ms=1,
        finished_ms=2,
        slot="worker-0",
    )
    return replace(view, **changes)


USED = Usage(images=1, pixel_steps=64 * 64, gpu_ms=500, wasted_gpu_ms=100)


def final_state(
    view=None, *, state=State.SUCCEEDED, commits=1, queues=(), listed=1, deadline_ms=None, usage=USED, totals=None
):
    job = JobView(
        job_id="job",
        model="flux2",
        state=state,
        cancel_requested=False,
        record={},
        accepted_ms=0,
        started_ms=1,
        finished_ms=2,
        queue_position=None,
        eta_s=None,
        items=(view or item(),),
        deadline_ms=deadline_ms,
    )
    return FinalState(
        jobs={"job": job},
        commits={"job:0": commits},
        queues=queues,
        listed=listed,
        usage=usage,
        totals=totals or usage,
    )


# Canceled by a deadline.
LATE = item(state=State.CANCELED, result=None, error=DEADLINE_EXCEEDED, started_ms=None)
GOOD = [
    {"t": 1, "kind": "accepted", "key": "k", "job": "job", "items": 1},
    {"t": 2, "kind": "claim", "item": "job:0", "fence": 1, "attempt": 1, "slot": "worker-0"},
    {"t": 3, "kind": "seen", "job": "job", "states": ["in_progress", "in_progress"]},
    {"t": 4, "kind": "commit", "item": "job:0", "fence": 1, "answer": "committed"},
    {"t": 5, "kind": "seen", "job": "job", "states": ["succeeded", "succeeded"]},
    {"t": 6, "kind": "refused", "status": 422},
]


@pytest.fixture
def store(tmp_path):
    made = DirectoryStore(tmp_path)
    for fence in (1, 2):
        file = io.BytesIO()
        picture(SEED).save(file, "PNG")
        made.put(f"results/job/0/{fence}/image.png", file.getvalue(), content_type="image/png")
    return made


def broken(events, found, store):
    return {violation.invariant for violation in check(events, found, store, worker_s=1.0)}


def test_a_good_run_has_no_violation(store):
    assert check(GOOD, final_state(), store, worker_s=1.0) == []


def claim(fence, t=2.5):
    return {"t": t, "kind": "claim", "item": "job:0", "fence": fence, "attempt": fence, "slot": "worker-1"}


KILL = {"t": 2.2, "kind": "kill", "target": "worker-0"}
CANCEL = {"t": 3.5, "kind": "cancel", "job": "job", "status": "in_progress", "acknowledged": True}
CHANGED = {"t": 7, "kind": "seen", "job": "job", "states": ["failed", "failed"]}
DENIED = {"t": 7, "kind": "denied", "key": "other", "status": 429, "code": "key_limit_reached", "unsure": False}
TWICE = {"t": 1.5, "kind": "accepted", "key": "k", "job": "other", "items": 1}


@pytest.mark.parametrize(
    ("invariant", "events", "found"),
    [
        ("I1", GOOD, final_state(state=State.RUNNING)),
        ("I1", GOOD, FinalState(jobs={}, commits={}, queues=(), listed=1)),
        ("I2", GOOD, final_state(commits=2)),
        ("I2", GOOD, final_state(commits=0)),
        ("I4", [*GOOD, KILL, claim(1)], final_state()),
        ("I4", [*GOOD, KILL, claim(2)], final_state(item(fence=2))),
        ("I5", [*GOOD, CHANGED], final_state()),
        ("I6", [*GOOD, CANCEL], final_state()),
        ("I7", [*GOOD, TWICE], final_state()),
        ("I8", GOOD, final_state(queues=("flux2:leases",))),
        ("I9", GOOD, final_state(listed=2)),
        ("I9", [*GOOD, {"t": 7, "kind": "refused", "status": 202}], final_state()),
        ("I9", [*GOOD, DENIED], replace(final_state(), names={"other": "job"})),
        ("I10", [*GOOD, claim(2)], final_state()),
        ("I11", GOOD, final_state(deadline_ms=1)),
        ("I11", GOOD, final_state(item(error=DEADLINE_EXCEEDED), deadline_ms=2)),
        ("I11", GOOD, final_state(LATE, state=State.CANCELED, deadline_ms=3)),
        ("I11", GOOD, final_state(replace(LATE, error=None), state=State.CANCELED)),
        ("I12", GOOD, final_state(usage=Usage())),
        ("I12", GOOD, final_state(usage=USED + Usage(images=1))),
        ("I12", GOOD, final_state(usage=USED + Usage(pixel_steps=1))),
        ("I12", GOOD, final_state(usage=USED + Usage(wasted_gpu_ms=500))),
        ("I12", GOOD, final_state(usage=USED + Usage(gpu_ms=-600))),
        ("I12", GOOD, final_state(totals=USED + USED)),
    ],
)
def test_the_checker_finds_each_kind_of_breach(invariant, events, found, store):
    assert invariant in broken(events, found, store)


def test_fences_must_rise_but_their_lines_in_the_history_may_be_out_of_order(store):
    key = "results/job/0/3/image.png"
    store.put(key, store.get("results/job/0/1/image.png"), content_type="image/png")
    found = final_state(item(fence=3, result=item().result.model_copy(update={"key": key})))
    kills = [{**KILL, "t": t} for t in (2.1, 2.2)]
    frozen = {**claim(2, t=2.9), "asked": 2.3}
    early = {**claim(2, t=2.9), "asked": 2.8}

    assert check([*GOOD, *kills, claim(3, t=2.7), frozen], found, store) == []
    assert broken([*GOOD, *kills, claim(3, t=2.7), early], found, store) == {"I4"}


def test_a_job_is_accepted_if_the_answer_was_lost_and_its_repeat_was_refused(store):
    events = [{**DENIED, "unsure": True}, *GOOD[1:]]

    assert check(events, replace(final_state(), names={"other": "job"}), store) == []
    assert broken(events, replace(final_state(state=State.RUNNING), names={"other": "job"}), store) == {"I1"}


def test_a_missing_and_a_wrong_picture_are_found(store, tmp_path):
    assert broken(GOOD, final_state(), DirectoryStore(tmp_path / "empty")) == {"I3"}

    file = io.BytesIO()
    Image.new("RGB", (16, 16)).save(file, "PNG")
    store.put("results/job/0/1/image.png", file.getvalue(), content_type="image/png")

    assert broken(GOOD, final_state(), store) == {"I3"}


def test_a_start_after_a_kill_does_not_count_as_waste(store):
    events = [*GOOD[:3], KILL, claim(2), *GOOD[3:]]
    key = "results/job/0/2/image.png"

    assert check(events, final_state(item(fence=2, result=item().result.model_copy(update={"key": key}))), store) == []


def test_a_recovery_is_timed_from_the_kill_of_the_items_worker_to_its_next_start():
    events = [claim(1, t=1.0), {"t": 2.0, "kind": "kill", "target": "worker-1"}, claim(2, t=5.5)]

    assert kill_to_start(events, ttl_s=4) == [3.5]


def test_a_recovery_during_a_redis_outage_does_not_count():
    events = [
        claim(1, t=1.0),
        {"t": 2.0, "kind": "kill", "target": "worker-1"},
        {"t": 2.5, "kind": "redis down"},
        {"t": 3.5, "kind": "redis up"},
        claim(2, t=9.0),
    ]

    assert kill_to_start(events, ttl_s=4) == []
    assert redis_to_start(events) == [5.5]
