"""Every key the ledger uses. The Lua prelude builds the same names; docs/reference/ledger.md has the table.

| key | type | content |
|---|---|---|
| flux2:job:{job} | HASH | state, cancel, counts by state, what the API keeps of the job (warnings), times in ms |
| flux2:item:{job}:{index} | HASH | state, fence, attempt, spec, slot, boot, nonce, progress, result, error, times |
| flux2:jobs | ZSET | job -> accept order; the listing |
| flux2:seq | STRING | accept order of the last item |
| flux2:pending:{model} | ZSET | item -> accept order; every queued item |
| flux2:shares:{model} | HASH | share (priority and tenant) -> how many items it has queued |
| flux2:lanes:{model}:{share} | ZSET | lane (share and adapter key) -> accept order of its oldest item |
| flux2:lane:{model}:{lane} | ZSET | item -> accept order |
| flux2:leases | ZSET | item -> lease deadline in ms; every running item |
| flux2:done | ZSET | job -> finish time in ms, for retention |
| flux2:busy:{model} | HASH | tenant -> running items |
| flux2:served:{model} | HASH | tenant -> time of its last claim in ms |
| flux2:pace:{model} | STRING | smoothed run time of an item in ms |
| flux2:idem:{tenant}:{key} | STRING + EX | body hash and job of an Idempotency-Key |
| flux2:slots | ZSET | slot -> last heartbeat in ms |
| flux2:slot:{slot} | HASH + EX | what a worker reports about itself |
| flux2:base:{model} | STRING | the loaded base model's revision and layer shapes, for header checks at accept |
| flux2:run_id | STRING | Redis run id that the leases were granted under |
| flux2:audit | STRING + PX | leader of the wake-up audit |
| flux2:wake.{model} | LIST | Celery's messages; they carry no id |
"""

PREFIX = "flux2:"

JOBS = f"{PREFIX}jobs"
LEASES = f"{PREFIX}leases"
SLOTS = f"{PREFIX}slots"
AUDIT_LEADER = f"{PREFIX}audit"


def job(job_id: str) -> str:
    return f"{PREFIX}job:{job_id}"


def item(item_id: str) -> str:
    return f"{PREFIX}item:{item_id}"


def pending(model: str) -> str:
    return f"{PREFIX}pending:{model}"


def pace(model: str) -> str:
    return f"{PREFIX}pace:{model}"


def slot(name: str) -> str:
    return f"{PREFIX}slot:{name}"


def base(model: str) -> str:
    return f"{PREFIX}base:{model}"


def idempotency(tenant: str, key: str) -> str:
    return f"{PREFIX}idem:{tenant}:{key}"


def wake_queue(model: str) -> str:
    """Celery's queue name; Redis sees it behind PREFIX."""
    return f"wake.{model}"


def wake_list(model: str) -> str:
    return PREFIX + wake_queue(model)
