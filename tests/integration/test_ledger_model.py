"""The ledger's scripts against a model of what they promise: random steps of two workers, the reaper and a client."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace
from datetime import date, timedelta
from typing import ClassVar

import redis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)

from shared.errors import QueueFull
from shared.job import TERMINAL, ItemError, ItemResult, ItemSpec, PipelineReport, Progress, State, pools
from shared.ledger import Ledger, Submission, keys
from shared.ledger.bulk_reads import read_each
from shared.ledger.claim import Claim
from shared.ledger.spec_parts import join_texts
from shared.ledger.usage_rows import Usage
from shared.settings import QueueSettings

STEPS_A_RUN, RUNS = 50, 60
TTL_S, CAP, MAX_ATTEMPTS = 30, 12, 3
# A longer gap between two passes, a third of a lease, counts as a stall. The time of a pass that comes sooner after
# another is not stored.
STALL_MS, PASS_MS = 10_000, 500
WORKERS = SMALL, BIG = ("gpu-0", "gpu-1")
GIB = {SMALL: 24, BIG: 80}
POOLS = pools("flux2", ["exact"], ["merged", "large"])
TENANTS = ("default", "other")
WAIT_BOUND_S = 3600
LARGE = "flux2+large"
# Whether the items of a pool are large.
QUEUES = {"flux2": False, LARGE: True}
ITEM_FIELDS = ("state", "fence", "attempt", "commits", "late")
DEADLINES, WARM_COUNTS, *ADAPTERS_OF_SLOTS = (
    f"{keys.PREFIX}{name}" for name in ("deadlines", "warm_counts", "warm", "next_adapters")
)
STEP = Progress(stage="denoise", step=1, steps=2)
# Device time that a worker states at the end of an attempt; without it, that of the last renewal counts.
GPU_MS = st.none() | st.integers(0, 9000)
BROKEN = ItemError(code="run_failed", message="it broke", retryable=True)


def seconds(ms: int | None) -> float | None:
    return None if ms is None else ms / 1000


def spec() -> ItemSpec:
    return ItemSpec(
        model="flux2",
        prompt="a cat",
        neg="",
        width=64,
        height=64,
        requested_width=64,
        requested_height=64,
        seed=1,
        num_inference_steps=2,
        guidance_scale=4.0,
        adapters=(),
        output_format="png",
    )


def result(claim: Claim) -> ItemResult:
    return ItemResult(
        key=f"results/{claim.job_id}/{claim.index}/{claim.fence}/image.png",
        format="png",
        content_type="image/png",
        width=64,
        height=64,
        sha256="00",
        size_bytes=1,
        timings={},
        adapters=(),
        pipeline=PipelineReport(
            engine="exact",
            precision="fp32",
            base_revision="r",
            device="cpu",
            adapter_mode="merged",
            change="none",
            versions={},
        ),
    )


class Item:
    """The expected state of one item, kept apart from the ledger by the simplest means."""

    def __init__(self, job: str, *, tenant: str, priority: int, order: int, accepted_ms: int) -> None:
        self.job = job
        self.tenant = tenant
        self.priority = priority
        # Position in the order of the accepts.
        self.order = order
        self.accepted_ms = accepted_ms
        self.state = State.QUEUED
        self.fence = 0
        self.attempt = 0
        self.deadline = 0
        self.slot = ""
        self.winner = 0
        # Device time that the last renewal of the running attempt stated.
        self.gpu_ms = 0
        # Whether it did not fit on the small worker's device.
        self.large = False
        # Whether the deadline of its job canceled it.
        self.late = False


class LedgerMachine(RuleBasedStateMachine):
    """Each rule is one step that a client, a worker or a caretaker may take, at any time and in any order."""

    claims = Bundle("claims")
    jobs = Bundle("jobs")

    client: redis.Redis
    steps: ClassVar[Counter[str]] = Counter()

    def __init__(self) -> None:
        super().__init__()
        self.client.flushall()
        self.now = 1_700_000_000_000
        options = QueueSettings(
            lease_ttl_s=TTL_S, max_attempts=MAX_ATTEMPTS, cap=CAP, retention_s=10**6, wait_bound_s=WAIT_BOUND_S
        )
        self.ledger = Ledger(self.client, options, clock_ms=lambda: self.now)
        self.items: dict[str, Item] = {}
        self.canceled: set[str] = set()
        # Times in ms, by job.
        self.deadlines: dict[str, int] = {}
        self.numbers = itertools.count()
        self.boots = itertools.count()
        self.orders = itertools.count()
        self.boot = dict.fromkeys(WORKERS, "boot")
        self.passed = self.now
        self.used = Usage()
        self.reasons: Counter[str] = Counter()
        self.lost: Counter[str] = Counter()
        self.released: Counter[str] = Counter()
        self.ledger.reap()

    # The client.

    @rule(
        target=jobs,
        count=st.integers(1, 3),
        priority=st.integers(0, 9),
        tenant=st.sampled_from(TENANTS),
        repeat=st.booleans(),
        deadline_s=st.none() | st.integers(1, 3 * TTL_S),
    )
    def accept(self, count, priority, tenant, repeat, deadline_s):
        self.steps["accept"] += 1
        job, key = f"job-{next(self.numbers)}", f"key-{next(self.numbers)}"
        options = {"record": {}, "priority": priority, "tenant": tenant, "idempotency_key": key, "body_hash": "h"}
        queued = self.queued()
        try:
            accepted = self.ledger.accept(job, [spec()] * count, deadline_s=deadline_s, **options)
        except QueueFull:
            assert len(queued) + count > CAP
            return multiple()
        assert len(queued) + count <= CAP
        assert (accepted.job_id, accepted.is_repeat) == (job, False)
        self.add_items(job, count, tenant=tenant, priority=priority)
        if deadline_s is not None:
            self.deadlines[job] = self.now + deadline_s * 1000
        if repeat:
            again = self.ledger.accept("another", [spec()] * count, **options)
            assert (again.job_id, again.is_repeat) == (job, True)
        return job

    # Rarer than `accept`, so that the other steps keep their share; with 5 items queued, 3 x 3 more have no room.
    @precondition(lambda self: len(self.in_state(State.QUEUED)) <= 5)
    @rule(target=jobs, counts=st.lists(st.integers(1, 3), min_size=2, max_size=3), repeat=st.booleans())
    def accept_together(self, counts, repeat):
        """A replay: several jobs in one call, all of them or none."""
        self.steps["accept_together"] += 1
        names = [f"job-{next(self.numbers)}" for _ in counts]
        room = len(self.queued()) + sum(counts) <= CAP
        parts = [
            Submission(name, [spec()] * count, record={}, idempotency_key=f"key of {name}", body_hash="h")
            for name, count in zip(names, counts, strict=True)
        ]
        try:
            accepted = self.ledger.accept_all(parts)
        except QueueFull:
            assert not room
            assert [self.ledger.job(name) for name in names] == [None] * len(names)
            return multiple()
        assert room
        assert [(job.job_id, job.is_repeat) for job in accepted] == [(name, False) for name in names]
        for name, count in zip(names, counts, strict=True):
            self.add_items(name, count, tenant="default", priority=5)
        if repeat:
            again = self.ledger.accept_all([replace(part, job_id="another") for part in parts])
            assert [(job.job_id, job.is_repeat) for job in again] == [(name, True) for name in names]
        return multiple(*names)

    @rule(job=jobs)
    def cancel(self, job):
        self.steps["cancel"] += 1
        assert self.ledger.cancel(job)
        if all(item.state in TERMINAL for item in self.of(job)):
            return
        self.canceled.add(job)
        for item in self.of(job):
            if item.state is State.QUEUED:
                item.state = State.CANCELED

    # The workers.

    @precondition(lambda self: self.in_state(State.QUEUED))
    @rule(target=claims, slot=st.sampled_from(WORKERS), warm=st.sampled_from(["base", "other"]))
    def claim(self, slot, warm):
        self.steps["claim"] += 1
        self.beat()
        expected = self.ledger.peek_next(POOLS, slot=slot, warm=warm)
        claim = self.ledger.claim_next(POOLS, slot=slot, boot=self.boot[slot], warm=warm)
        if not self.notice_late():
            assert expected == (claim and claim.spec)
        if claim is None:
            # The others were late, or the other worker has more memory.
            assert not (self.queued() if slot == SMALL else self.in_state(State.QUEUED))
            return multiple()
        item = self.items[claim.item_id]
        assert not self.is_late(item)
        assert claim.pool == (LARGE if item.large else "flux2")
        assert item.state is State.QUEUED
        assert (claim.fence, claim.attempt) == (item.fence + 1, item.attempt + 1)
        assert claim.why in self.reasons_of(item, warm)
        self.reasons[claim.why] += 1
        item.state, item.fence, item.attempt = State.RUNNING, claim.fence, claim.attempt
        item.deadline, item.slot, item.gpu_ms = self.now + TTL_S * 1000, slot, 0
        return claim

    @rule(claim=claims, gpu_ms=st.integers(0, 9000))
    def renew(self, claim, gpu_ms):
        self.steps["renew"] += 1
        answer = self.ledger.renew(claim, STEP, gpu_s=gpu_ms / 1000)
        item = self.items[claim.item_id]
        if not self.owns(claim):
            assert answer == "lost"
            return
        assert answer == ("cancel" if item.job in self.canceled else "ok")
        item.deadline, item.gpu_ms = self.now + TTL_S * 1000, gpu_ms

    @rule(claim=claims, outcome=st.sampled_from(["succeeded", "failed", "canceled"]), gpu_ms=GPU_MS)
    def commit(self, claim, outcome, gpu_ms):
        self.steps["commit"] += 1
        values = {"succeeded": result(claim), "failed": BROKEN, "canceled": None}
        item = self.items[claim.item_id]
        owned, before = self.owns(claim), item.state
        answer = self.ledger.commit(claim, values[outcome], gpu_s=seconds(gpu_ms))
        if not owned:
            same = item.fence == claim.fence and before in TERMINAL
            expected = "stale"
            if same and before == outcome:
                expected = "repeated"
            elif same and before is State.CANCELED:
                expected = "canceled"
            assert answer == expected
            return
        item.state = State.CANCELED if item.job in self.canceled else State(outcome)
        assert answer == ("committed" if item.state == outcome else "canceled")
        item.gpu_ms = item.gpu_ms if gpu_ms is None else gpu_ms
        if item.state is State.SUCCEEDED:
            self.used += Usage(images=1, pixel_steps=64 * 64 * 2, gpu_ms=item.gpu_ms)
        else:
            self.waste(item)
        item.winner = claim.fence if item.state is State.SUCCEEDED else 0

    @rule(claim=claims, reason=st.sampled_from(["drain", "outage", "retry", "later"]), gpu_ms=GPU_MS)
    def release(self, claim, reason, gpu_ms):
        self.steps["release"] += 1
        item, owned = self.items[claim.item_id], self.owns(claim)
        answer = self.ledger.release(claim, reason, BROKEN, gpu_s=seconds(gpu_ms))
        if not owned:
            assert answer == "stale"
            return
        self.released[reason] += 1
        item.attempt -= reason in ("drain", "outage")
        if reason == "later":
            item.order = next(self.orders)
        item.gpu_ms = item.gpu_ms if gpu_ms is None else gpu_ms
        self.requeue_or_end(item)
        assert answer == item.state

    @rule(claim=claims)
    def overflow(self, claim):
        """The item does not fit on the worker's device."""
        self.steps["overflow"] += 1
        self.beat()
        item, owned = self.items[claim.item_id], self.owns(claim)
        memory_bytes = GIB[item.slot] * 2**30
        answer = self.ledger.release_too_large(claim, memory_bytes=memory_bytes, error=BROKEN, too_large=BROKEN)
        if not owned:
            assert answer == "stale"
            return
        self.released["memory"] += 1
        self.requeue_or_end(item, may_retry=item.slot == SMALL)
        item.large = item.large or item.state is State.QUEUED
        assert answer == item.state

    @precondition(lambda self: self.in_state(State.RUNNING))
    @rule(slot=st.sampled_from(WORKERS))
    def restart_worker(self, slot):
        self.steps["restart"] += 1
        self.boot[slot] = f"boot-{next(self.boots)}"
        held = [item for item in self.in_state(State.RUNNING) if item.slot == slot]
        requeued = self.ledger.reclaim(slot=slot, boot=self.boot[slot])
        self.lost["reclaimed"] += len(held)
        for item in held:
            self.requeue_or_end(item)
        assert requeued == sum(item.state is State.QUEUED for item in held)

    @rule(claim=consumes(claims))
    def vanish(self, claim):
        """A worker dies and is never heard of again."""
        self.steps["vanish"] += 1

    # Time and the caretaker.

    @precondition(lambda self: any(self.is_late(item) for item in self.in_state(State.QUEUED)))
    @rule()
    def expire_deadlines(self):
        """The late items are canceled before anyone claims them."""
        self.steps["expire_deadlines"] += 1
        late = [item for item in self.in_state(State.QUEUED) if self.is_late(item)]
        assert self.ledger.expire_deadlines() == len(late)
        assert self.notice_late() == late
        assert all(item.state is State.CANCELED for item in late)

    # Leases and deadlines are what time ends.
    @precondition(lambda self: self.in_state(State.RUNNING) or self.deadlines)
    @rule(seconds=st.integers(1, 2 * TTL_S))
    def wait(self, seconds):
        self.steps["wait"] += 1
        self.now += seconds * 1000

    @precondition(lambda self: self.in_state(State.RUNNING))
    @rule()
    def reap(self):
        self.steps["reap"] += 1
        self.pass_once()

    @precondition(lambda self: self.in_state(State.RUNNING))
    @rule()
    def reap_steadily(self):
        """Caretakers pass each 5 s while no worker renews: every lease ends, whatever happened before."""
        self.steps["reap_steadily"] += 1
        running = [(item, item.fence) for item in self.in_state(State.RUNNING)]
        # Before a step back of the clock, a renewal may have come up to a stall after the last pass.
        for _ in range(-(-(TTL_S * 1000 + STALL_MS) // 5000) + 1):
            self.now += 5000
            self.pass_once()
        assert not [item for item, fence in running if item.state is State.RUNNING and item.fence == fence]

    @precondition(lambda self: self.in_state(State.RUNNING))
    @rule(seconds=st.integers(STALL_MS // 1000 + 1, 5 * TTL_S), passes=st.integers(1, 3))
    def stall(self, seconds, passes):
        """Redis stalls; in its backlog the caretakers' passes come before the workers' renewals."""
        self.steps["stall"] += 1
        self.pass_once()
        self.disturb(seconds * 1000, passes)

    @precondition(lambda self: self.in_state(State.RUNNING))
    @rule(hours=st.sampled_from([-1, 1]), passes=st.integers(1, 3))
    def set_clock(self, hours, passes):
        self.steps["set_clock"] += 1
        self.pass_once()
        self.disturb(hours * 3_600_000, passes)

    def disturb(self, step_ms, passes):
        """Move the clock at once: no item whose lease had not expired may be requeued, and no lease may be endless."""
        running = [(item, item.fence) for item in self.in_state(State.RUNNING)]
        self.now += step_ms
        for _ in range(passes):
            self.pass_once()
        assert all(item.state is State.RUNNING and item.fence == fence for item, fence in running)
        left_ms = [deadline - self.now for _, deadline in self.client.zrange(keys.LEASES, 0, -1, withscores=True)]
        least_ms = TTL_S * 1000 if step_ms < 0 else 0
        assert all(least_ms <= left <= TTL_S * 1000 + STALL_MS for left in left_ms)

    def pass_once(self):
        """Reap, and expect what the deadlines say; after a stall every lease has what it had left at the last pass."""
        running, gap_ms = self.in_state(State.RUNNING), self.now - self.passed
        stalled = abs(gap_ms) > STALL_MS
        if stalled:
            for item in running:
                left_ms = item.deadline - self.passed
                if gap_ms > 0:
                    item.deadline = max(item.deadline, self.now + min(left_ms, TTL_S * 1000))
                else:
                    item.deadline = self.now + max(left_ms, TTL_S * 1000)
        if abs(gap_ms) >= PASS_MS:
            self.passed = self.now
        expired = [item for item in running if item.deadline < self.now]
        reaped = self.ledger.reap()
        self.lost["expired"] += len(expired)
        for item in expired:
            self.requeue_or_end(item)
        assert sum(reaped.requeued.values()) == sum(item.state is State.QUEUED for item in expired)
        assert reaped.grace == (stalled and bool(running))

    @precondition(lambda self: self.in_state(State.RUNNING))
    @rule()
    def redis_restarts(self):
        """The server has another run id; whoever reaps first grants every lease a full term."""
        self.steps["grace"] += 1
        self.pass_once()
        self.client.set(f"{keys.PREFIX}run_id", "another")
        assert self.ledger.reap().grace
        for item in self.in_state(State.RUNNING):
            item.deadline = max(item.deadline, self.now + TTL_S * 1000)

    # What must hold after each step.

    @invariant()
    def every_promise_holds(self):
        stored = self.read()
        self.the_ledger_agrees_with_the_model(stored)
        self.queues_and_leases_hold_exactly_the_living(stored)
        self.a_job_is_what_its_items_are(stored)
        self.warm_adapters_are_counted(stored)
        self.each_event_counts_once()
        self.what_attempts_used_is_counted_once()

    def read(self):
        """Read what is compared in one round trip, each of which takes a loaded machine long; return it by command."""
        jobs = {item.job for item in self.items.values()}
        commands = [
            *(("hmget", keys.item(name), ITEM_FIELDS) for name in self.items),
            *(("hgetall", keys.job(job)) for job in jobs),
            *(("lrange", key(job), 0, -1) for job in jobs for key in (keys.results, keys.result_parts)),
            *(("zrange", key, 0, -1) for key in (keys.LEASES, DEADLINES, *map(keys.pending, QUEUES))),
            *(("hvals", key(pool)) for key in (keys.shares, keys.busy) for pool in QUEUES),
            *(("hvals", key) for key in ADAPTERS_OF_SLOTS),
            ("hgetall", WARM_COUNTS),
        ]
        return dict(zip(commands, read_each(self.client, commands), strict=True))

    def the_ledger_agrees_with_the_model(self, stored):
        results = self.results(stored)
        for name, item in self.items.items():
            *record, commits, late = stored["hmget", keys.item(name), ITEM_FIELDS]
            assert record == [item.state.value, str(item.fence), str(item.attempt)]
            assert (late == "1") == item.late
            assert int(commits) <= 1
            assert (name in results) == (item.state is State.SUCCEEDED)
            if name in results:
                assert results[name].key.split("/")[3] == str(item.winner)

    def queues_and_leases_hold_exactly_the_living(self, stored):
        running = {name for name, item in self.items.items() if item.state is State.RUNNING}
        assert set(stored["zrange", keys.LEASES, 0, -1]) == running
        for pool, large in QUEUES.items():
            members = {name: item.state for name, item in self.items.items() if item.large == large}
            queued = {name for name, state in members.items() if state is State.QUEUED}
            assert set(stored["zrange", keys.pending(pool), 0, -1]) == queued
            assert sum(int(count) for count in stored["hvals", keys.shares(pool)]) == len(queued)
            assert sum(int(count) for count in stored["hvals", keys.busy(pool)]) == len(members.keys() & running)

    def a_job_is_what_its_items_are(self, stored):
        for job in {item.job for item in self.items.values()}:
            record = stored["hgetall", keys.job(job)]
            counts = Counter(item.state for item in self.of(job))
            assert {state: int(record[state]) for state in State} == {state: counts[state] for state in State}
            ended = not counts[State.QUEUED] and not counts[State.RUNNING]
            assert (State(record["state"]) in TERMINAL) == ended
            assert (job in stored["zrange", DEADLINES, 0, -1]) == (job in self.deadlines and not ended)
            if ended and job in self.canceled:
                assert record["state"] == State.CANCELED

    def warm_adapters_are_counted(self, stored):
        indexes = [stored["hvals", key] for key in ADAPTERS_OF_SLOTS]
        counts = stored["hgetall", WARM_COUNTS]
        assert {name: int(count) for name, count in counts.items()} == Counter(itertools.chain(*indexes))

    def each_event_counts_once(self):
        totals = self.ledger.totals()
        assert Counter(totals.claims) == self.reasons
        assert Counter(totals.lost_leases) == self.lost
        assert Counter(totals.releases) == self.released
        assert totals.items == {state: len(self.in_state(state)) for state in (State.FAILED, State.CANCELED)}

    def what_attempts_used_is_counted_once(self):
        assert sum(self.ledger.usage.totals().values(), Usage()) == self.used

    def teardown(self):
        """The days have the same sum as the totals."""
        days = [int(name.split(":")[2]) for name in self.client.scan_iter(keys.usage("*", "*"))]
        first, last = (date(1970, 1, 1) + timedelta(days=day) for day in (min(days, default=0), max(days, default=0)))
        assert sum((row.usage for row in self.ledger.usage.rows(first, last)), Usage()) == self.used

    def add_items(self, job, count, *, tenant, priority):
        for index in range(count):
            order = next(self.orders)
            item = Item(job, tenant=tenant, priority=priority, order=order, accepted_ms=self.now)
            self.items[f"{job}:{index}"] = item

    def reasons_of(self, item, warm):
        """Say why a queued item may be claimed before the oldest one of its pool."""
        pool = [other for other in self.in_state(State.QUEUED) if other.large == item.large]
        oldest = min(pool, key=lambda other: other.order)
        if self.now - oldest.accepted_ms > WAIT_BOUND_S * 1000:
            assert item is oldest
            return {"overdue"}
        if oldest.priority > item.priority:
            return {"priority"}
        # No item has adapters.
        affinity = "warm" if warm == "base" else "cold"
        if oldest.tenant != item.tenant:
            # Either it is its turn, or the slot goes on with its adapters.
            return {"share", affinity} - {"cold"}
        return {affinity}

    def waste(self, item):
        self.used += Usage(wasted_gpu_ms=item.gpu_ms)
        item.gpu_ms = 0

    def requeue_or_end(self, item, *, may_retry=True):
        self.waste(item)
        if item.job in self.canceled:
            item.state = State.CANCELED
        elif not may_retry or item.attempt >= MAX_ATTEMPTS:
            item.state = State.FAILED
        elif self.is_late(item):
            item.state, item.late = State.CANCELED, True
        else:
            item.state = State.QUEUED

    def is_late(self, item):
        return self.now >= self.deadlines.get(item.job, self.now + 1)

    def notice_late(self):
        """Read which late items have been canceled, as a claim may do with some of them; return them."""
        canceled = []
        for name, item in self.items.items():
            if item.state is State.QUEUED and self.is_late(item):
                item.state = State(self.client.hget(keys.item(name), "state"))
                assert item.state in (State.QUEUED, State.CANCELED)
                item.late = item.state is State.CANCELED
                canceled += [item] if item.late else []
        return canceled

    def beat(self):
        """Both workers live."""
        for slot in WORKERS:
            report = {"model": "flux2", "engines": "exact", "features": "merged,large", "warm": "base"}
            self.ledger.workers.beat(slot, {**report, "memory_bytes": str(GIB[slot] * 2**30)})

    def queued(self):
        """Return the queued items of the pool that jobs are accepted into."""
        return [item for item in self.in_state(State.QUEUED) if not item.large]

    def results(self, stored):
        """Return each stored result by its item's id."""
        results = {}
        for job in {item.job for item in self.items.values()}:
            lines, parts = (stored["lrange", key(job), 0, -1] for key in (keys.results, keys.result_parts))
            for index, position, own in (line.split(" ", 2) for line in lines):
                # An error has no part of its own.
                if own != "{}":
                    text = join_texts([own, parts[int(position)]])
                    results[f"{job}:{index}"] = ItemResult.model_validate_json(text)
        return results

    def owns(self, claim):
        item = self.items[claim.item_id]
        return item.state is State.RUNNING and item.fence == claim.fence

    def of(self, job):
        return [item for item in self.items.values() if item.job == job]

    def in_state(self, state):
        return [item for item in self.items.values() if item.state is state]


def test_two_workers_a_reaper_and_a_client_never_break_the_ledgers_promises(redis_client, capsys):
    LedgerMachine.client = redis_client
    LedgerMachine.steps = Counter()

    run_state_machine_as_test(
        LedgerMachine,
        settings=settings(
            max_examples=RUNS,
            stateful_step_count=STEPS_A_RUN,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )

    taken = sum(LedgerMachine.steps.values())
    with capsys.disabled():
        print(f"\nsteps: {taken} {dict(LedgerMachine.steps)}")  # noqa: T201
    assert set(LedgerMachine.steps) >= {
        "accept",
        "accept_together",
        "claim",
        "commit",
        "renew",
        "release",
        "overflow",
        "reap",
        "reap_steadily",
        "stall",
        "set_clock",
        "expire_deadlines",
        "grace",
        "cancel",
    }
    assert taken >= 2000
