"""The offline checker: compares a run's history and the final state of Redis with the invariants.

| # | invariant |
|---|---|
| I1 | every accepted job has ended |
| I2 | every item that succeeded or failed was committed once |
| I3 | each result's object exists and is the picture of its seed |
| I4 | an item's fences rise, and the result is that of the last one |
| I5 | no client ever saw an ended job or item change |
| I6 | a job whose cancel was acknowledged has not succeeded |
| I7 | one Idempotency-Key stands for one job |
| I8 | nothing is queued, leased or counted as running at the end |
| I9 | refused requests left no trace |
| I10 | starts of items do not exceed items + disturbances + 5 % |
| I11 | no item starts past its job's deadline, and it is canceled by that, or by a cancel, or not |
| I12 | the usage is that of the items that succeeded, and no more GPU time than the workers had |
"""

from __future__ import annotations

import io
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import pairwise

from PIL import Image

from chaos.history import Event
from chaos.stub import picture
from shared.errors import StorageUnavailable
from shared.job import TERMINAL, SpecReport, State
from shared.ledger import ItemView, JobView, Ledger, keys
from shared.ledger.job_reader import DEADLINE_EXCEEDED
from shared.ledger.usage_rows import Usage
from shared.storage import ObjectStore

_WASTE = 0.05
# Events that may cost an item another start.
DISTURBANCES = frozenset({"kill", "freeze", "terminate", "froze"})
_QUEUES = {"pending", "shares", "lanes", "lane", "leases", "busy"}
_ENDED = {"succeeded", "failed", "canceled"}


@dataclass(frozen=True)
class Violation:
    """One broken invariant.

    Attributes:
        subject: the job, item or key to look for in the history.
    """

    invariant: str
    subject: str
    detail: str


@dataclass(frozen=True)
class FinalState:
    """The content of Redis after a run.

    Attributes:
        jobs: jobs by id.
        commits: number of commits by item id.
        queues: names of keys that must not exist any more.
        listed: number of jobs in the listing.
        names: jobs by Idempotency-Key.
        usage: what the ledger counted, over all days; None for a system that counts none.
        totals: the same, as `/metrics` states it.
    """

    jobs: dict[str, JobView]
    commits: dict[str, int]
    queues: tuple[str, ...]
    listed: int
    names: dict[str, str] = field(default_factory=dict)
    usage: Usage | None = None
    totals: Usage | None = None


def collect(ledger: Ledger) -> FinalState:
    """Read the final state from Redis."""
    ids = ledger.redis.zrange(keys.JOBS, 0, -1)
    jobs = {job_id: view for job_id in ids if (view := ledger.job(job_id)) is not None}
    items = [f"{job_id}:{item.index}" for job_id, view in jobs.items() for item in view.items]
    with ledger.redis.pipeline(transaction=False) as pipe:
        for item in items:
            pipe.hget(keys.item(item), "commits")
        commits = {item: int(count or 0) for item, count in zip(items, pipe.execute(), strict=True)}
    names = ledger.redis.scan_iter(f"{keys.PREFIX}*")
    queues = tuple(name for name in names if name.removeprefix(keys.PREFIX).split(":")[0] in _QUEUES)
    # A scenario may have set the clock by an hour, over midnight.
    today = ledger.usage.today()
    rows = ledger.usage.rows(today - timedelta(days=1), today + timedelta(days=1))
    return FinalState(
        jobs=jobs,
        commits=commits,
        queues=queues,
        listed=len(ids),
        names=_names(ledger),
        usage=sum((row.usage for row in rows), Usage()),
        totals=sum(ledger.usage.totals().values(), Usage()),
    )


def _names(ledger: Ledger) -> dict[str, str]:
    """Read the job of each Idempotency-Key, which is a UUID in all runs, so that tenants share none."""
    stored = list(ledger.redis.scan_iter(keys.idempotency("*", "*")))
    values = ledger.redis.mget(stored) if stored else []
    return {key.rpartition(":")[2]: str(value).split()[-1] for key, value in zip(stored, values, strict=True) if value}


def check(
    events: Sequence[Event],
    final: FinalState,
    store: ObjectStore,
    *,
    outages: int = 0,
    worker_s: float = math.inf,
    picture_of: Callable[[SpecReport], Image.Image] = lambda spec: picture(spec.seed),
) -> list[Violation]:
    """Return every violation of an invariant.

    Args:
        outages: starts of items that a Redis outage may have cost.
        worker_s: length of the run in seconds, for each worker, in sum.
        picture_of: returns the only correct image of an item.
    """
    accepted = {event["job"]: event for event in events if event["kind"] == "accepted"}
    # The answer to an earlier call with the same Idempotency-Key was lost.
    accepted |= {
        final.names[event["key"]]: event
        for event in events
        if event["kind"] == "denied" and event["unsure"] and event["key"] in final.names
    }
    return [
        *_terminal(accepted, final),
        *_committed_once(final),
        *_pictures(final, store, picture_of),
        *_fences(events, final),
        *_stable(events),
        *_canceled(events, final),
        *_keys(events),
        *_empty(final),
        *_traces(events, accepted, final),
        *_waste(events, final, outages),
        *_deadlines(final),
        *_usage(final, worker_s),
    ]


def _items(final: FinalState) -> Iterator[tuple[str, ItemView]]:
    for job_id, job in final.jobs.items():
        for item in job.items:
            yield f"{job_id}:{item.index}", item


def _terminal(accepted: dict[str, Event], final: FinalState) -> Iterator[Violation]:
    for job_id in accepted:
        job = final.jobs.get(job_id)
        if job is None or job.state not in TERMINAL:
            yield Violation("I1", job_id, "lost" if job is None else f"still {job.state.value}")


def _committed_once(final: FinalState) -> Iterator[Violation]:
    for name, item in _items(final):
        # A queued item is canceled without a commit, a running one with it.
        allowed = {State.SUCCEEDED: {1}, State.FAILED: {1}, State.CANCELED: {0, 1}}.get(item.state, {0})
        if final.commits[name] not in allowed:
            yield Violation("I2", name, f"{item.state.value} with {final.commits[name]} commits")


def _pictures(
    final: FinalState, store: ObjectStore, picture_of: Callable[[SpecReport], Image.Image]
) -> Iterator[Violation]:
    for name, item in _items(final):
        if item.result is None:
            continue
        try:
            image = Image.open(io.BytesIO(store.get(item.result.key)))
        except StorageUnavailable as error:
            yield Violation("I3", name, str(error))
            continue
        if item.spec is None:
            yield Violation("I3", name, "its spec cannot be read")
        elif image.convert("RGB").tobytes() != picture_of(item.spec).tobytes():
            yield Violation("I3", name, f"{item.result.key} is not the picture of seed {item.spec.seed}")


def _fences(events: Sequence[Event], final: FinalState) -> Iterator[Violation]:
    claims: dict[str, list[Event]] = defaultdict(list)
    for event in events:
        if event["kind"] == "claim":
            claims[event["item"]].append(event)
    for name, item in _items(final):
        by_fence = sorted(claims[name], key=lambda event: int(event["fence"]))
        if any(_out_of_order(earlier, later) for earlier, later in pairwise(by_fence)):
            yield Violation("I4", name, f"fences do not rise: {[event['fence'] for event in claims[name]]}")
        if item.result is not None and item.result.key.split("/")[3] != str(item.fence):
            yield Violation("I4", name, f"the result {item.result.key} is not that of fence {item.fence}")


def _out_of_order(lower: Event, higher: Event) -> bool:
    """Whether two claims share a fence, or the one with the higher fence ended before the other was requested."""
    # A worker may be frozen between its claim and its line in the history, so the order of the lines proves nothing.
    return bool(lower["fence"] == higher["fence"] or higher["t"] < lower.get("asked", lower["t"]))


def _stable(events: Sequence[Event]) -> Iterator[Violation]:
    seen: dict[str, list[str]] = {}
    for event in (event for event in events if event["kind"] == "seen"):
        before = seen.get(event["job"], [])
        for old, new in zip(before, event["states"], strict=False):
            if old in _ENDED and new != old:
                yield Violation("I5", event["job"], f"{before} became {event['states']}")
        seen[event["job"]] = event["states"]


def _canceled(events: Sequence[Event], final: FinalState) -> Iterator[Violation]:
    # A cancel that came after the job's end changes nothing and is not acknowledged.
    for event in events:
        if event["kind"] == "cancel" and event["acknowledged"]:
            job = final.jobs.get(event["job"])
            if job is not None and job.state is not State.CANCELED:
                yield Violation("I6", event["job"], f"its cancel was acknowledged, but it is {job.state.value}")


def _keys(events: Sequence[Event]) -> Iterator[Violation]:
    jobs: dict[str, set[str]] = defaultdict(set)
    for event in events:
        if event["kind"] == "accepted":
            jobs[event["key"]].add(event["job"])
    for key, found in jobs.items():
        if len(found) > 1:
            yield Violation("I7", key, f"stands for several jobs: {sorted(found)}")


def _empty(final: FinalState) -> Iterator[Violation]:
    for name in final.queues:
        yield Violation("I8", name, "is not empty at the end")


def _traces(events: Sequence[Event], accepted: dict[str, Event], final: FinalState) -> Iterator[Violation]:
    for event in events:
        if event["kind"] == "refused" and event["status"] != 422:
            yield Violation("I9", "a bad request", f"was answered {event['status']}")
        if event["kind"] == "denied" and not event["unsure"] and event["key"] in final.names:
            yield Violation(
                "I9", event["key"], f"was refused ({event['code']}), and is job {final.names[event['key']]}"
            )
    if final.listed != len(accepted):
        yield Violation("I9", "jobs", f"{final.listed} are stored, {len(accepted)} were accepted")


def _waste(events: Sequence[Event], final: FinalState, outages: int) -> Iterator[Violation]:
    starts = sum(event["kind"] == "claim" for event in events)
    disturbed = sum(event["kind"] in DISTURBANCES for event in events) + outages
    items = sum(len(job.items) for job in final.jobs.values())
    if starts > items * (1 + _WASTE) + disturbed:
        yield Violation("I10", "all items", f"{starts} starts of {items} items, {disturbed} disturbances")


def _deadlines(final: FinalState) -> Iterator[Violation]:
    # All times are of Redis' clock.
    for name, item in _items(final):
        job = final.jobs[name.rpartition(":")[0]]
        deadline_ms = math.inf if job.deadline_ms is None else job.deadline_ms
        is_late = item.error is not None and item.error.code == DEADLINE_EXCEEDED.code
        if item.started_ms is not None and item.started_ms >= deadline_ms:
            yield Violation("I11", name, f"started {item.started_ms - deadline_ms} ms after its deadline")
        if is_late and (item.state is not State.CANCELED or (item.finished_ms or 0) < deadline_ms):
            yield Violation("I11", name, f"{item.state.value} by a deadline that had not passed")
        if item.state is State.CANCELED and not is_late and not job.cancel_requested:
            yield Violation("I11", name, "canceled by nobody")


def _usage(final: FinalState, worker_s: float) -> Iterator[Violation]:
    if final.usage is None:
        return
    specs = [item.spec for _, item in _items(final) if item.state is State.SUCCEEDED and item.spec]
    # The sizes of the runs' requests are rendered as they are.
    steps = [spec.requested_width * spec.requested_height * spec.num_inference_steps for spec in specs]
    expected, counted = (len(specs), sum(steps)), (final.usage.images, final.usage.pixel_steps)
    if counted != expected:
        yield Violation("I12", "usage", f"{counted} images and pixel-steps, but {expected} were committed")
    used_s, wasted_s = final.usage.gpu_ms / 1000, final.usage.wasted_gpu_ms / 1000
    if min(used_s, wasted_s) < 0 or used_s + wasted_s > worker_s:
        yield Violation("I12", "GPU time", f"{used_s} s and {wasted_s} s without an image, of {worker_s:.1f} s")
    if final.totals != final.usage:
        yield Violation("I12", "totals", f"{final.totals} differ from the sum of the days, {final.usage}")
