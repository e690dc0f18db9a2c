"""The names of the ledger's keys in Redis; the Lua prelude builds the same names.

docs/reference/ledger.md describes the content of each key.
"""

# Celery's keys have the prefix too (`global_keyprefix`), so one ACL rule covers all keys.
PREFIX = "flux2:"

JOBS = f"{PREFIX}jobs"
SWEEPS = f"{PREFIX}sweeps"
LEASES = f"{PREFIX}leases"
SLOTS = f"{PREFIX}slots"
SLOT_NAMES = f"{PREFIX}slot_names"
SLOT_KINDS = f"{PREFIX}slot_kinds"
KINDS = f"{PREFIX}kinds"
UNHEALTHY_SLOTS = f"{PREFIX}unhealthy_slots"
SLOTS_MISSING = f"{PREFIX}slots_missing"
OUTBOX = f"{PREFIX}outbox"
ITEM_OUTBOX = f"{PREFIX}item_outbox"
TOTALS = f"{PREFIX}totals"
METRICS = f"{PREFIX}metrics"
STORAGE_OUTAGE = f"{PREFIX}storage_outage"
SEQUENCE = f"{PREFIX}seq"
COMPACT_FROM = f"{PREFIX}compact_from"
AUDIT_LEADER = f"{PREFIX}audit"
LARGE_AUDIT_LEADER = f"{PREFIX}large_audit"
REFERENCES_AUDIT_LEADER = f"{PREFIX}references_audit"
SIGMAS_AUDIT_LEADER = f"{PREFIX}sigmas_audit"
API_KEYS = f"{PREFIX}keys"
USAGE_TOTALS = f"{PREFIX}usage_totals"
PREVIEW_WANTED = f"{PREFIX}preview_wanted"
# Never stored: adding to a list that does not exist shows whether Redis takes writes.
WRITE_PROBE = f"{PREFIX}probe"
# Never stored: they have different slots, so that a cluster refuses a command that names both.
SLOT_PROBES = (WRITE_PROBE, f"{PREFIX}probe2")


def job(job_id: str) -> str:
    return f"{PREFIX}job:{job_id}"


def sweep(sweep_id: str) -> str:
    return f"{PREFIX}sweep:{sweep_id}"


def tenant_sweeps(tenant: str) -> str:
    return f"{PREFIX}tenant_sweeps:{tenant}"


def item(item_id: str) -> str:
    return f"{PREFIX}item:{item_id}"


def preview(item_id: str) -> str:
    return f"{PREFIX}preview:{item_id}"


def specs(job_id: str) -> str:
    return f"{PREFIX}specs:{job_id}"


def results(job_id: str) -> str:
    return f"{PREFIX}results:{job_id}"


def result_parts(job_id: str) -> str:
    return f"{PREFIX}result_parts:{job_id}"


def pending(pool: str) -> str:
    return f"{PREFIX}pending:{pool}"


def shares(pool: str) -> str:
    return f"{PREFIX}shares:{pool}"


def busy(pool: str) -> str:
    return f"{PREFIX}busy:{pool}"


def turns(pool: str) -> str:
    return f"{PREFIX}turns:{pool}"


def turn_entries(pool: str) -> str:
    return f"{PREFIX}turn_entries:{pool}"


def pace(pool: str) -> str:
    return f"{PREFIX}pace:{pool}"


def times(model: str) -> str:
    return f"{PREFIX}times:{model}"


def slot(name: str) -> str:
    return f"{PREFIX}slot:{name}"


def claims(slot_name: str) -> str:
    return f"{PREFIX}claims:{slot_name}"


def faults(slot_name: str) -> str:
    return f"{PREFIX}faults:{slot_name}"


def base(model: str) -> str:
    return f"{PREFIX}base:{model}"


def idempotency(tenant: str, key: str) -> str:
    return f"{PREFIX}idem:{tenant}:{key}"


def api_key(key_id: str) -> str:
    return f"{PREFIX}key:{key_id}"


def usage(day: int, tenant: str) -> str:
    """Return the key of a tenant's usage of a day, which counts from the epoch."""
    return f"{PREFIX}usage:{day}:{tenant}"


def usage_tenants(day: int) -> str:
    return f"{PREFIX}usage_tenants:{day}"


def images(period: int) -> str:
    """Return the key of the images that were finished in a period of 10 s, which counts from the epoch."""
    return f"{PREFIX}images:{period}"


def lanes(pool: str, share: str) -> str:
    return f"{PREFIX}lanes:{pool}:{share}"


def lane(pool: str, name: str) -> str:
    return f"{PREFIX}lane:{pool}:{name}"


def wake_queue(name: str) -> str:
    """Return Celery's name of a queue of wake-ups; Celery puts PREFIX before it in Redis."""
    return f"wake.{name}"


def wake_list(name: str) -> str:
    """Return the Redis key of a queue of wake-ups."""
    return PREFIX + wake_queue(name)
