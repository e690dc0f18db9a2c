"""Processes of two versions share one Redis during a rolling deployment: records keep their keys, fields and bytes.

`ledger_records.json` is what commit 2c85dcb, whose scripts had positional arguments, left in Redis after `play`.
"""

import json
from pathlib import Path

import pytest

from shared.errors import IdempotencyKeyReused
from shared.job import AdapterRef, AdapterReport, ItemError, ItemResult, ItemSpec, PipelineReport, Progress, State
from shared.ledger import Claim, Ledger, keys
from shared.ledger.spec_parts import join_texts
from shared.settings import QueueSettings

RECORDS = Path(__file__).with_name("ledger_records.json")
BROKEN = ItemError(code="run_failed", message='it "broke" at 1e-07 \N{SNOWMAN}', retryable=True)
EXACT, TOOLKIT = ("flux2",), ("flux2+ai-toolkit",)
URL = "https://example.com/hook?a=1&b=\N{SNOWMAN}"
# Two lists of adapters and a seed that a double cannot hold.
FLOATS = (0.1, -1.7, 1e-07)
BIG_SEED = 2**63 - 1
NEW_JOB_FIELDS = {"key_until_ms", "adapters"}
NEW_ITEM_FIELDS = {"lease_ttl_ms", "gpu_ms", "why", "shape"}
# In the text of an adapter whose worker states no scale.
NEW_REPORT_FIELDS = '"scale_range":null,"scale_sources":[],'
NEW_SLOT_FIELDS = {"reads_compact", "large_pools", "indexed_ms"}
NEW_KEYS = (
    "slot_names",
    "images:",
    "compact_from",
    "reaped_ms",
    "totals",
    "metrics",
    "turns:",
    "turn_entries:",
    "claims:",
    "warm",
    "next_adapters",
    "slot_kinds",
    "kinds",
    "outbox:",
    "tenant_jobs:",
    "tenants_until",
    "usage",
    "times:",
)
# An item that has ended keeps only what is shown of it.
DROPPED = {"job", "pool", "tenant", "lane", "seq", "accepted_ms", "boot", "nonce", "progress"}


class Clock:
    def __init__(self) -> None:
        self.ms = 1_700_000_000_123

    def __call__(self) -> int:
        return self.ms


def spec(*multipliers: float, engine: str = "exact", seed: int = BIG_SEED) -> ItemSpec:
    return ItemSpec(
        model="flux2",
        prompt='a "cat" \\ in the snow \N{SNOWMAN} \U0001f431\t\x00',
        neg="",
        width=64,
        height=64,
        requested_width=65,
        requested_height=66,
        seed=seed,
        num_inference_steps=25,
        guidance_scale=4.0,
        adapters=tuple(
            AdapterRef(path=f"{n}.safetensors", sha256=f"{n:064x}", size_bytes=2**40 + n, multiplier=multiplier)
            for n, multiplier in enumerate(multipliers)
        ),
        output_format="png",
        engine=engine,
    )


def result(claim: Claim) -> ItemResult:
    return ItemResult(
        key=f"results/{claim.job_id}/{claim.index}/{claim.fence}/image.png",
        format="png",
        content_type="image/png",
        width=64,
        height=64,
        sha256="0f" * 32,
        size_bytes=10_000_000_000,
        timings={"denoise": 1.25, "upload": 1e-05},
        adapters=(
            AdapterReport(
                path="0.safetensors",
                sha256="00",
                multiplier=0.1,
                kind="lora",
                ranks=(),
                layers_touched=1,
                layers_total=2,
            ),
        ),
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


def play(ledger: Ledger, clock: Clock, *, compact: bool = False) -> None:
    """Leave a record of every kind: jobs and items in each state, slots, faults, webhooks in each state."""

    def claim(slot: str, *, pools=EXACT, boot: str = "boot-1") -> Claim:
        clock.ms += 1000
        claimed = ledger.claim_next(pools, slot=slot, boot=boot, warm="base")
        assert claimed is not None
        return claimed

    ledger.reap()
    report = {
        "model": "flux2",
        "state": "ready",
        "device": "cpu",
        "revision": "r",
        "precision": "fp32",
        "engines": "exact,ai-toolkit",
        "warm": "base",
        "item": "",
        "base_drift": "0",
    }
    ledger.workers.beat("host/cpu", report)
    ledger.workers.record_fault("host/cpu", "job:0", window_s=600)
    ledger.workers.publish_base_model("flux2", revision="r", layers={"img_in": (64, 128)})
    ledger.wakeups.try_lead_audit("leader")

    def accept(job: str, *specs: ItemSpec, **options) -> None:
        ledger.accept(
            job, specs, record={"warnings": ["h\N{LATIN SMALL LETTER E WITH ACUTE} \\ "]}, compact=compact, **options
        )

    accept("delivered", spec(), webhook_url=URL)
    ledger.commit(claim("host/cpu"), result(claim_of(ledger, "delivered")))
    accept("failed", spec(), webhook_url=URL, priority=0)
    ledger.commit(claim("host/cpu"), BROKEN)
    accept("lost", spec())
    for _ in range(2):
        claim("host/gone")
        # In steps, as caretakers reap: a gap of a whole lease would be a stall, which expires nothing.
        for pause_ms in (*[5000] * 6, 1000):
            clock.ms += pause_ms
            ledger.reap()
    accept("canceled", spec(), spec())
    claim("host/cpu")
    ledger.cancel("canceled")
    first, second = ledger.outbox.reserve_due(reserve_s=20, limit=5)
    ledger.outbox.mark_delivered(first)
    ledger.outbox.postpone(second, wait_s=60.5, error="answered 500 \N{SNOWMAN}")

    accept(
        "released", spec(*FLOATS), spec(), tenant="team-a", priority=9, idempotency_key="k \N{SNOWMAN}", body_hash="h"
    )
    released = claim("host/cpu")
    ledger.renew(released, Progress(stage="denoise", step=3, steps=25))
    ledger.release(released, "retry", BROKEN)
    accept("running", spec(seed=0), idempotency_key="running", body_hash="h2", webhook_url=URL)
    ledger.renew(claim("host/cpu"), Progress(stage="upload", step=25, steps=25))
    accept("toolkit", spec(engine="ai-toolkit"), spec(engine="ai-toolkit"))
    claim("host/other", pools=TOOLKIT)
    ledger.reclaim(slot="host/other", boot="boot-2")
    accept("queued", spec(0.5))


def claim_of(ledger: Ledger, job: str, index: int = 0) -> Claim:
    """Return the claim of a running item, as its worker holds it."""
    stored = ledger.redis.hgetall(keys.item(f"{job}:{index}"))
    if "spec" not in stored:
        texts = ledger.redis.lrange(keys.specs(job), 0, -1)
        stored["spec"] = join_texts([texts[0], *texts[index + 1 : index + 2]])
    return Claim(
        item_id=f"{job}:{index}",
        fence=int(stored["fence"]),
        attempt=int(stored["attempt"]),
        spec=ItemSpec.model_validate_json(stored["spec"]),
        queued_s=0.0,
        pool=stored.get("pool", "flux2"),
        why=stored.get("why", "cold"),
    )


def read_all(client) -> dict[str, object]:
    """Return every key of the ledger with its value; the ids that Redis and each call make up are left out."""
    read = {
        "string": client.get,
        "set": lambda key: sorted(client.smembers(key)),
        "hash": client.hgetall,
        "zset": lambda key: client.zrange(key, 0, -1, withscores=True),
    }
    values = {key: read[client.type(key)](key) for key in sorted(client.scan_iter(f"{keys.PREFIX}*"))}
    values[f"{keys.PREFIX}run_id"] = "an id"
    for value in values.values():
        if isinstance(value, dict) and "nonce" in value:
            value["nonce"] = "an id"
    ttls_s = {key: round(client.pttl(key) / 1000) for key in values if client.pttl(key) > 0}
    return json.loads(json.dumps({"values": values, "ttls_s": ttls_s}))


def restore(client, records) -> None:
    for key, value in records["values"].items():
        if isinstance(value, dict):
            client.hset(key, mapping=value)
        elif isinstance(value, list):
            client.zadd(key, dict(value))
        else:
            client.set(key, value)
    for key, ttl_s in records["ttls_s"].items():
        client.expire(key, ttl_s)


@pytest.fixture
def records():
    return json.loads(RECORDS.read_text(encoding="utf-8"))


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def ledger(redis_client, clock):
    return Ledger(redis_client, QueueSettings(lease_ttl_s=30, max_attempts=2, cap=20), clock_ms=clock)


@pytest.fixture
def old(redis_client, ledger, clock, records):
    """A ledger on the earlier version's records, a second after they were written."""
    restore(redis_client, records)
    # The server in which they were written is another than the test's; it counts as the same.
    redis_client.delete(f"{keys.PREFIX}run_id")
    ledger.reap()
    clock.ms = int(redis_client.hget(keys.job("queued"), "accepted_ms")) + 1000
    return ledger


def test_this_version_writes_the_bytes_that_the_earlier_version_wrote(redis_client, ledger, clock, records):
    play(ledger, clock)

    written = read_all(redis_client)
    # The earlier version ignores the keys and fields that were added since.
    for part in written.values():
        for key in [key for key in part if key.removeprefix(keys.PREFIX).startswith(NEW_KEYS)]:
            del part[key]
    for key, value in written["values"].items():
        for kind, added in (
            (keys.job(""), NEW_JOB_FIELDS),
            (keys.item(""), NEW_ITEM_FIELDS),
            (keys.slot(""), NEW_SLOT_FIELDS),
        ):
            if key.startswith(kind):
                written["values"][key] = {
                    name: text.replace(NEW_REPORT_FIELDS, "") for name, text in value.items() if name not in added
                }

    for key, value in records["values"].items():
        if key.startswith(keys.item("")) and "finished_ms" in value:
            records["values"][key] = {name: text for name, text in value.items() if name not in DROPPED}
    records["values"][keys.item("canceled:1")]["spec"] = '{"num_inference_steps":25}'

    assert written["values"] == records["values"]
    assert written["ttls_s"] == pytest.approx(records["ttls_s"], abs=5)


def test_jobs_in_the_compact_form_are_read_as_those_in_the_whole_form(redis_client, clock):
    jobs = ["delivered", "failed", "lost", "canceled", "released", "running", "toolkit", "queued"]

    def views(*, compact):
        redis_client.flushall()
        clock.ms = Clock().ms
        ledger = Ledger(redis_client, QueueSettings(lease_ttl_s=30, max_attempts=2, cap=20), clock_ms=clock)
        play(ledger, clock, compact=compact)
        return [ledger.job(job_id) for job_id in jobs]

    assert views(compact=True) == views(compact=False)


def test_jobs_of_the_earlier_version_are_read(old):
    expected = {
        "delivered": [State.SUCCEEDED],
        "failed": [State.FAILED],
        "lost": [State.FAILED],
        "canceled": [State.RUNNING, State.CANCELED],
        "released": [State.QUEUED, State.QUEUED],
        "running": [State.RUNNING],
        "toolkit": [State.QUEUED, State.QUEUED],
        "queued": [State.QUEUED],
    }

    jobs = {job_id: old.job(job_id) for job_id in expected}

    assert {job_id: [item.state for item in job.items] for job_id, job in jobs.items()} == expected
    assert jobs["delivered"].items[0].result == result(claim_of(old, "delivered"))
    assert jobs["failed"].items[0].error == BROKEN
    assert jobs["released"].record == {"warnings": ["h\N{LATIN SMALL LETTER E WITH ACUTE} \\ "]}
    assert jobs["released"].items[0].spec.seed == BIG_SEED
    assert jobs["running"].items[0].progress == Progress(stage="upload", step=25, steps=25)
    assert [jobs[job_id].webhook.state for job_id in ("delivered", "failed", "running")] == [
        "delivered",
        "waiting",
        "waiting",
    ]
    assert [job.job_id for job in old.jobs(before=None, limit=20).jobs] == list(reversed(expected))


def test_workers_of_the_earlier_version_are_read(old, redis_client, records):
    # Heartbeats are older than the jobs, whose times the test's clock made up.
    redis_client.zadd(keys.SLOTS, {"host/cpu": old.now_ms()})

    [slot] = old.workers.live_slots()

    assert (slot.name, slot.engines, slot.corrupted) == ("host/cpu", ("exact", "ai-toolkit"), 0)
    assert old.workers.base_model("flux2", [slot]).layers == {"img_in": (64, 128)}
    assert old.workers.count_faults("host/cpu", window_s=600) == 1
    assert not old.wakeups.try_lead_audit("another")
    assert old.wakeups.try_lead_audit("leader")


def test_a_repeat_of_a_job_that_the_earlier_version_accepted_is_that_job(old):
    options = {"record": {}, "tenant": "team-a", "idempotency_key": "k \N{SNOWMAN}"}

    again = old.accept("new", [spec()], body_hash="h", **options)

    assert (again.job_id, again.is_repeat) == ("released", True)
    assert old.find_repeat("k \N{SNOWMAN}", tenant="team-a", body_hash="h") == again
    with pytest.raises(IdempotencyKeyReused):
        old.accept("new", [spec()], body_hash="other", **options)


def test_claims_of_the_earlier_version_stay_valid(old):
    running, canceled = claim_of(old, "running"), claim_of(old, "canceled")

    assert old.renew(running, Progress(stage="upload", step=25, steps=25)) == "ok"
    assert old.renew(canceled, Progress(stage="upload", step=25, steps=25)) == "cancel"
    assert old.commit(claim_of(old, "delivered"), result(claim_of(old, "delivered"))) == "repeated"
    assert old.commit(canceled, result(canceled)) == "canceled"
    assert old.commit(running, result(running)) == "committed"

    assert old.job("running").items[0].result == result(running)
    assert [message.job_id for message in old.outbox.reserve_due(reserve_s=1, limit=9)] == ["running"]


def test_a_queue_of_the_earlier_version_is_processed_in_its_order(old, redis_client, clock):
    old.commit(claim_of(old, "running"), None)
    old.commit(claim_of(old, "canceled"), None)

    claimed, specs = [], {}
    while claim := old.claim_next([*EXACT, *TOOLKIT], slot="host/cpu", boot="boot-3", warm="base"):
        specs[claim.item_id] = claim.spec
        claimed.append((claim.item_id, claim.fence, claim.attempt))
        old.commit(claim, result(claim))

    assert (specs["released:0"], specs["queued:0"]) == (spec(*FLOATS), spec(0.5))
    # By priority, then what the slot has warm (released:1 has no adapter), then in the order of the accepts.
    assert claimed == [
        ("toolkit:0", 2, 2),
        ("toolkit:1", 1, 1),
        ("queued:0", 1, 1),
        ("released:1", 2, 2),
        ("released:0", 1, 1),
    ]
    names = {name.removeprefix(keys.PREFIX).split(":")[0] for name in redis_client.scan_iter(f"{keys.PREFIX}*")}
    assert names.isdisjoint({"pending", "shares", "lanes", "lane", "leases", "busy"})

    clock.ms += 8 * 86_400_000
    for message in old.outbox.reserve_due(reserve_s=1, limit=9):
        old.outbox.mark_delivered(message)
    assert old.forget_ended() == 8
    assert old.jobs(before=None, limit=20).jobs == ()
