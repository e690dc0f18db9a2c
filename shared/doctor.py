"""`flux2 doctor`: check everything that a running service needs; each finding states the problem and its remedy.

The checks write nothing except probe objects in the store, which they delete. A failed check does not hide the others,
so one run shows all problems.
"""

from __future__ import annotations

import os
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial

from shared.catalog import POOLS
from shared.errors import CheckpointError, LedgerForbidden, LedgerUnavailable, LedgerUnusable
from shared.finding import Finding, explain_redis, run_check
from shared.key_check import check_keys
from shared.ledger import Ledger, keys
from shared.ledger.connection import MIN_REDIS
from shared.ledger.server import read_server
from shared.model_places import require_model
from shared.plurals import counted
from shared.provenance.check import check_provenance
from shared.settings import Settings
from shared.sources.cache_folder import CacheFolder
from shared.storage_check import check_storage

# S3 refuses signed requests when clocks differ by 15 minutes. Leases use Redis' clock alone, so they are not affected.
_MAX_CLOCK_OFFSET_S = 5.0
# Caretakers requeue expired leases every FLUX2_QUEUE_REAP_S; one this late means that no caretaker runs.
_MAX_REAP_DELAY_S = 10.0


def run_checks(settings: Settings) -> Iterator[Finding]:
    """Check Redis, the clock, workers, queues, leases, webhooks, wake-ups, storage, sources, weights and signatures."""
    yield from _ledger(settings)
    for name, check in (
        ("storage", partial(check_storage, settings)),
        ("adapters", partial(_adapters, settings)),
        ("sources", lambda: [_sources(settings)]),
        ("model", partial(_model, settings)),
        ("provenance", partial(check_provenance, settings.provenance)),
    ):
        yield from run_check(name, check)


def _ledger(settings: Settings) -> Iterator[Finding]:
    ledger = Ledger.connect(settings.redis.url, settings.queue, timeout_s=settings.redis.timeout_s)
    for name, check in (
        ("redis", partial(_redis, ledger)),
        ("redis is durable", partial(_durability, ledger)),
        ("clock", partial(_clock, ledger)),
        ("workers", partial(_workers, ledger)),
        ("queue", partial(_queues, ledger)),
        ("leases", partial(_leases, ledger)),
        ("webhooks", partial(_webhooks, ledger, settings)),
        ("wake-ups", partial(_wakeups, settings)),
        ("keys", partial(check_keys, ledger, settings.api)),
    ):
        try:
            yield from run_check(name, check)
        except LedgerUnavailable as error:
            # The other checks would only wait for the same timeout.
            yield Finding("redis", "failed", *explain_redis(error))
            return


def _redis(ledger: Ledger) -> Iterator[Finding]:
    ledger.ping()
    server = read_server(ledger.redis)
    if server.is_too_old:
        required = ".".join(str(part) for part in MIN_REDIS)
        # The other checks would fail at the first command that it does not know.
        raise LedgerUnusable(f"{server} is too old; install Redis {required} or later, or Valkey")
    ledger.check_permissions()
    ledger.check_writable()
    yield Finding("redis", "ok", f"{server} allows every command and takes writes")


def _wakeups(settings: Settings) -> Iterator[Finding]:
    # Celery takes 0.1 s to import, which the other commands should not wait for.
    from shared.celery_app import check_broker, make_celery

    # Its client of Redis is another one than the ledger's: with only one of them, jobs are accepted and never run.
    with make_celery(settings.redis.url, side="api", timeout_s=settings.redis.timeout_s) as celery:
        try:
            check_broker(celery)
        except LedgerForbidden:
            raise
        except LedgerUnavailable as error:
            yield Finding("wake-ups", "failed", *explain_redis(error))
            return
    yield Finding("wake-ups", "ok", "Celery reaches the same Redis")


def _durability(ledger: Ledger) -> Iterator[Finding]:
    issues = ledger.durability_issues()
    for issue in issues:
        yield Finding("redis is durable", "failed" if issue.is_certain else "warning", issue.detail, issue.remedy)
    if not issues:
        yield Finding("redis is durable", "ok", "appendonly yes, appendfsync always, maxmemory-policy noeviction")


def _clock(ledger: Ledger) -> Iterator[Finding]:
    before_s = time.time()
    redis_s = ledger.now_ms() / 1000
    # The middle of the call is the best estimate of the moment at which Redis read its clock.
    offset_s = abs(redis_s - (before_s + time.time()) / 2)
    detail = f"{offset_s:.2f} s from the clock of Redis' host"
    if offset_s > _MAX_CLOCK_OFFSET_S:
        yield Finding(
            "clock", "warning", detail, "run NTP on both hosts; signed URLs and S3 requests need the right time"
        )
    else:
        yield Finding("clock", "ok", detail)


def _workers(ledger: Ledger) -> Iterator[Finding]:
    for slot in ledger.workers.unhealthy_slots():
        if slot.state == "faulty":
            yield Finding(
                "worker",
                "failed",
                f"{slot.name}: its device failed repeatedly",
                "look at dmesg and nvidia-smi, then reboot the host or replace the GPU",
            )
        if slot.corrupted:
            yield Finding(
                "worker",
                "failed",
                f"{slot.name}: {slot.corrupted} base weights are corrupted",
                "restart the worker and report a bug",
            )
    states = Counter[str]()
    for kind, count in ledger.slot_kinds.count().items():
        states[kind.state] += count
    if states:
        yield Finding("workers", "ok", ", ".join(f"{count} {state}" for state, count in states.items()))
    else:
        yield Finding("workers", "warning", "no worker is running", "start one: flux2 worker")


def _queues(ledger: Ledger) -> Iterator[Finding]:
    kinds = ledger.slot_kinds.count()
    for name in POOLS:
        queued = ledger.queue_length(name)
        if queued and not any(name in kind.pools for kind in kinds):
            yield Finding(
                "queue",
                "failed",
                f"{counted(queued, f'item of {name} is', f'items of {name} are')} queued, but no worker serves it",
                "start a worker for that model and engine; with `+merged`, one whose precision is not qfloat8; with "
                "`+references`, `+sigmas` or `+large`, one of this version, because earlier ones render no reference "
                "images, take no sigmas, and leave images that did not fit on a device",
            )


def _leases(ledger: Ledger) -> Iterator[Finding]:
    oldest = ledger.redis.zrange(keys.LEASES, 0, 0, withscores=True)
    late_s = (ledger.now_ms() - oldest[0][1]) / 1000 if oldest else 0.0
    if late_s > _MAX_REAP_DELAY_S:
        yield Finding(
            "leases",
            "failed",
            f"{oldest[0][0]} expired {late_s:.0f} s ago and was not requeued",
            "restart the API, which requeues expired items",
        )
    else:
        yield Finding("leases", "ok", f"{counted(ledger.redis.zcard(keys.LEASES), 'item is', 'items are')} running")


def _webhooks(ledger: Ledger, settings: Settings) -> Iterator[Finding]:
    unsent = ledger.outbox.count_undelivered()
    if unsent and settings.webhook.secret is None:
        yield Finding("webhooks", "failed", f"{unsent} webhooks cannot be signed", "set FLUX2_WEBHOOK_SECRET")
    elif settings.webhook.secret is not None:
        yield Finding("webhooks", "ok", f"{unsent} webhooks are waiting to be delivered")


def _model(settings: Settings) -> Iterator[Finding]:
    # Only if the weights are configured and here: the doctor may run on a host without workers.
    if settings.model.path is None:
        return
    try:
        require_model(settings.model)
    except CheckpointError as error:
        detail, _, remedy = str(error).partition("; ")
        yield Finding("model", "failed", detail, remedy)
    else:
        yield Finding("model", "ok", f"nothing in {settings.model.path} contradicts {settings.model.id}")


def _adapters(settings: Settings) -> Iterator[Finding]:
    root = settings.adapters.root.absolute()
    if not root.is_dir() or not os.access(root, os.R_OK | os.X_OK):
        yield Finding(
            "adapters",
            "failed",
            f"{root} cannot be read",
            "create it or set FLUX2_ADAPTERS_ROOT; the API and the workers must see the same files",
        )
    else:
        yield Finding("adapters", "ok", str(root))


def _sources(settings: Settings) -> Finding:
    """Report where adapters may come from; what only workers need is a warning, because this host may have none."""
    if settings.sources.local_only:
        return Finding("sources", "ok", "FLUX2_SOURCES_LOCAL_ONLY: only files under the adapter root are used")
    # The hub's library takes 0.1 s to import.
    from shared.sources.hub_file import hub_place

    host, port = hub_place()
    cache = CacheFolder(settings.sources.cache_dir)
    existing = next(folder for folder in (cache.root, *cache.root.parents) if folder.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        return Finding(
            "sources",
            "warning",
            f"a worker of this user on this host cannot download: {cache.root} cannot be written",
            "set FLUX2_SOURCES_CACHE_DIR to a folder that it can write, or ignore this on a host without workers",
        )
    free_bytes = shutil.disk_usage(existing).free
    # Files in the cache make room for others.
    room_bytes = free_bytes + (sum(entry.size_bytes for entry in cache.entries()) if cache.exists() else 0)
    largest = min(settings.adapters.max_bytes, settings.sources.cache_max_bytes)
    if room_bytes < largest:
        return Finding(
            "sources",
            "warning",
            f"{cache.root} has room for {room_bytes / 1e9:.1f} GB, and an adapter may have {largest / 1e9:.1f} GB",
            "free space, or set FLUX2_SOURCES_CACHE_DIR to a folder on another disk",
        )
    return Finding("sources", "ok", f"hub {host}:{port}, cache {cache.root} with {room_bytes / 1e9:.1f} GB of room")
