"""`flux2 doctor`: look at everything a running service needs, and say what is wrong and what to do.

It changes nothing but one probe object in the store, which it deletes. Each check stands alone, so that one look shows
all that is wrong.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from shared.catalog import POOLS
from shared.errors import LedgerUnavailable, StorageUnavailable
from shared.ledger import Ledger, keys
from shared.ledger.connection import MIN_REDIS
from shared.settings import Settings
from shared.storage import open_store

# Signed requests are refused by S3 when clocks differ by 15 minutes; leases use Redis' clock alone.
_CLOCK_S = 5.0
# A lease this long past its end has no reaper.
_UNREAPED_S = 10.0


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    name: str
    state: Literal["ok", "warning", "failed"]
    detail: str
    remedy: str = ""


def run_checks(settings: Settings) -> Iterator[Finding]:
    """Check Redis, its durability, the clock, storage, adapters, workers, queue and webhooks."""
    ledger = Ledger.connect(settings.redis.url, settings.queue, timeout_s=settings.redis.timeout_s)
    try:
        yield from _redis(ledger)
        yield from _durability(ledger)
        yield _clock(ledger)
        yield from _workers(ledger)
        yield _caretakers(ledger)
        yield from _webhooks(ledger, settings)
    except LedgerUnavailable as error:
        yield Finding("redis", "failed", str(error), "start Redis, or mend FLUX2_REDIS_URL")
    yield _storage(settings)
    yield _adapters(settings)


def _redis(ledger: Ledger) -> Iterator[Finding]:
    ledger.ping()
    version = str(ledger.redis.info("server")["redis_version"])
    if tuple(int(part) for part in version.split(".")[:2]) < MIN_REDIS:
        yield Finding("redis", "failed", f"version {version}", "6.2 or later is needed")
    else:
        yield Finding("redis", "ok", f"version {version}")


def _durability(ledger: Ledger) -> Iterator[Finding]:
    issues = ledger.durability_issues()
    for issue in issues:
        yield Finding("redis is durable", "failed", issue.detail, issue.remedy)
    if not issues:
        yield Finding("redis is durable", "ok", "appendonly yes, appendfsync always, maxmemory-policy noeviction")


def _clock(ledger: Ledger) -> Finding:
    before = time.time()
    theirs = ledger.now_ms() / 1000
    apart = abs(theirs - (before + time.time()) / 2)
    detail = f"{apart:.2f} s from Redis' host"
    if apart > _CLOCK_S:
        return Finding("clock", "warning", detail, "run NTP on both: signed URLs and S3 requests depend on the time")
    return Finding("clock", "ok", detail)


def _workers(ledger: Ledger) -> Iterator[Finding]:
    slots = ledger.workers.live_slots()
    for slot in slots:
        if slot.state == "faulty":
            yield Finding("worker", "failed", f"{slot.name}: its device failed repeatedly", "dmesg, nvidia-smi, reboot")
        if slot.corrupted:
            yield Finding("worker", "failed", f"{slot.name}: {slot.corrupted} weights are not clean", "report a defect")
    states = Counter(slot.state for slot in slots)
    detail = ", ".join(f"{count} {state}" for state, count in states.items()) or "none is alive"
    yield Finding("workers", "ok" if slots else "warning", detail, "" if slots else "start one: flux2 worker")
    for name in POOLS:
        queued = ledger.queue_length(name)
        if queued and not any(name in slot.pools for slot in slots):
            yield Finding("queue", "failed", f"{queued} items of {name} wait, and no worker takes them", "start one")


def _caretakers(ledger: Ledger) -> Finding:
    oldest = ledger.redis.zrange(keys.LEASES, 0, 0, withscores=True)
    late_s = (ledger.now_ms() - oldest[0][1]) / 1000 if oldest else 0.0
    if late_s > _UNREAPED_S:
        return Finding("leases", "failed", f"{oldest[0][0]} is {late_s:.0f} s past its end", "restart the API")
    return Finding("leases", "ok", f"{ledger.redis.zcard(keys.LEASES)} items run")


def _webhooks(ledger: Ledger, settings: Settings) -> Iterator[Finding]:
    unsent = ledger.outbox.count_undelivered()
    if unsent and settings.webhook.secret is None:
        yield Finding("webhooks", "failed", f"{unsent} messages cannot be signed", "set FLUX2_WEBHOOK_SECRET")
    elif settings.webhook.secret is not None:
        yield Finding("webhooks", "ok", f"{unsent} messages are not delivered yet")


def _storage(settings: Settings) -> Finding:
    try:
        open_store(settings).check()
    except StorageUnavailable as error:
        return Finding(
            "storage", "failed", str(error), "the bucket must exist; the key needs put, get, delete and list"
        )
    return Finding("storage", "ok", "wrote, read and deleted a probe")


def _adapters(settings: Settings) -> Finding:
    root = settings.adapters.root.absolute()
    if not root.is_dir() or not os.access(root, os.R_OK | os.X_OK):
        return Finding("adapters", "failed", f"{root} cannot be read", "set FLUX2_ADAPTERS_ROOT; workers see the same")
    return Finding("adapters", "ok", str(root))
