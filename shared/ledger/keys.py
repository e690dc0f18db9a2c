"""Every key the ledger uses. The Lua prelude builds the same names; docs/reference/ledger.md has the table.

A pool is a model and an engine, see `shared.job.pool`: what a worker must offer to be given an item.

| key | type | content |
|---|---|---|
| flux2:job:{job} | HASH | state, cancel, counts by state, what the API keeps of the job (warnings), times in ms |
| flux2:item:{job}:{index} | HASH | state, fence, attempt, spec, slot, boot, nonce, progress, result, error, times |
| flux2:jobs | ZSET | job -> accept order; the listing |
| flux2:seq | STRING | accept order of the last item |
| flux2:pending:{pool} | ZSET | item -> accept order; every queued item |
| flux2:shares:{pool} | HASH | share (priority and tenant) -> how many items it has queued |
| flux2:lanes:{pool}:{share} | ZSET | lane (share and adapter key) -> accept order of its oldest item |
| flux2:lane:{pool}:{lane} | ZSET | item -> accept order |
| flux2:leases | ZSET | item -> lease deadline in ms; every running item |
| flux2:done | ZSET | job -> finish time in ms, for retention |
| flux2:busy:{pool} | HASH | tenant -> running items |
| flux2:served:{pool} | HASH | tenant -> time of its last claim in ms, until the wait bound is over |
| flux2:pace:{pool} | STRING | smoothed run time of an item in ms |
| flux2:idem:{tenant}:{key} | STRING + EX | body hash and job of an Idempotency-Key |
| flux2:slots | ZSET | slot -> last heartbeat in ms |
| flux2:slot:{slot} | HASH + EX | what a worker reports about itself |
| flux2:faults:{slot} | ZSET + EX | item on which the slot's device failed -> when, in ms |
| flux2:base:{model} | STRING | the loaded base model's revision and layer shapes, for header checks at accept |
| flux2:outbox | ZSET | ended job with a webhook -> when to send, in ms |
| flux2:run_id | STRING | Redis run id that the leases were granted under |
| flux2:audit | STRING + PX | leader of the wake-up audit |
| flux2:wake.{pool} | LIST | Celery's messages; they carry no id; at most some 100 more than queued items |
| flux2:unacked*, flux2:_kombu.* | HASH, ZSET, SET, STRING | Celery's own |
"""

PREFIX = "flux2:"

JOBS = f"{PREFIX}jobs"
LEASES = f"{PREFIX}leases"
SLOTS = f"{PREFIX}slots"
OUTBOX = f"{PREFIX}outbox"
AUDIT_LEADER = f"{PREFIX}audit"


def job(job_id: str) -> str:
    return f"{PREFIX}job:{job_id}"


def item(item_id: str) -> str:
    return f"{PREFIX}item:{item_id}"


def pending(pool: str) -> str:
    return f"{PREFIX}pending:{pool}"


def pace(pool: str) -> str:
    return f"{PREFIX}pace:{pool}"


def slot(name: str) -> str:
    return f"{PREFIX}slot:{name}"


def faults(slot_name: str) -> str:
    return f"{PREFIX}faults:{slot_name}"


def base(model: str) -> str:
    return f"{PREFIX}base:{model}"


def idempotency(tenant: str, key: str) -> str:
    return f"{PREFIX}idem:{tenant}:{key}"


def wake_queue(pool: str) -> str:
    """Celery's queue name; Redis sees it behind PREFIX."""
    return f"wake.{pool}"


def wake_list(pool: str) -> str:
    return PREFIX + wake_queue(pool)
