"""Store jobs and their items in Redis, from accept to the last commit.

Each method that writes runs one Lua script, which is one atomic, durable step. Only the claim with the current fence
may change a running item, an ended item never changes, and Redis' clock is the only clock. `scripts/` holds the
scripts, each with its arguments and keys; docs/reference/ledger.md lists states and keys.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal, Self

from shared.errors import LedgerUnavailable, LedgerUnusable
from shared.job import ItemError, ItemResult, ItemSpec, Progress, WebhookEvent, large_pool, memory_gib
from shared.ledger import durability, job_reader, keys, listing, permissions
from shared.ledger.acceptance import AcceptedJob, Submission
from shared.ledger.acceptor import Acceptor
from shared.ledger.api_keys import ApiKeys
from shared.ledger.backlog import Backlog
from shared.ledger.claim import Claim, ReapResult
from shared.ledger.claims import Claims
from shared.ledger.connection import Client, connect
from shared.ledger.image_listing import ImageListing
from shared.ledger.key_use import KeyUse
from shared.ledger.live_jobs import LiveJobs
from shared.ledger.metric_sums import MetricSums
from shared.ledger.new_items import NewItems
from shared.ledger.outbox import Outbox
from shared.ledger.outcome import CommitAnswer, end_item
from shared.ledger.outlook import Forecaster, Outlook
from shared.ledger.previews import Previews
from shared.ledger.queue_reader import QueueReader
from shared.ledger.session import Session, to_ms
from shared.ledger.slot_claims import find_unlisted_claims
from shared.ledger.slot_kinds import SlotKinds
from shared.ledger.slot_listing import SlotListing
from shared.ledger.sweeps import Sweeps
from shared.ledger.totals import Totals, read_totals
from shared.ledger.upload_users import count_users
from shared.ledger.usage_reader import UsageReader
from shared.ledger.usage_rows import usage_ttl_s
from shared.ledger.views import EndedItem, JobPage, JobView
from shared.ledger.wakeups import WakeupQueues
from shared.ledger.workers import SLOT_TTL_MS, WorkerRegistry
from shared.redis_url import RedisUrl
from shared.settings import QueueSettings

# The error of an item whose attempts all ended without a report from their workers.
WORKER_LOST = ItemError(
    code="worker_lost", message="every worker that tried this item died or lost its lease", retryable=True
)

_INDEX_STEPS = 20
_EXPIRE_STEPS = 20


class Ledger:
    """Jobs and items in one Redis; see `Session` for the arguments and for the error that every call may raise.

    Attributes:
        workers: the live slots and the models that they have loaded.
        api_keys: the keys that callers of the API have.
        outbox: webhook messages that are still to be sent.
        usage: what attempts used.
        backlog: the items that wait and run.
        slots: the live slots, in pages, with the items that they run.
        slot_kinds: the live slots, counted by what they are.
        queue: how many items wait and run, by tenant and adapters.
        live_jobs: what moves of jobs, for those who watch them.
        sweeps: the sweeps, each with all of its jobs.
        images: the finished images, in pages.
        previews: pictures of images that are being rendered.
        metrics: what processes count by themselves.
        wakeups: the wake-up messages that no worker has consumed.
    """

    def __init__(
        self,
        client: Client,
        settings: QueueSettings,
        *,
        clock_ms: Callable[[], int] | None = None,
        pause_s: float = 0.0,
    ) -> None:
        self._session = Session(client, clock_ms=clock_ms, pause_s=pause_s)
        self._settings = settings
        self._claims = Claims(self._session, settings)
        self.slot_kinds = SlotKinds(self._session)
        self._forecaster = Forecaster(self._session, self.slot_kinds, wait_bound_s=settings.wait_bound_s)
        self._acceptor = Acceptor(self._session, settings, self._forecaster)
        self.workers = WorkerRegistry(self._session)
        self.api_keys = ApiKeys(self._session)
        self.outbox = Outbox(self._session)
        self.usage = UsageReader(self._session)
        self.backlog = Backlog(self._session)
        self.slots = SlotListing(self._session)
        self.queue = QueueReader(self._session)
        self.live_jobs = LiveJobs(self._session, self._forecaster)
        self.sweeps = Sweeps(self._session, self._acceptor, self.live_jobs)
        self.images = ImageListing(self._session)
        self.previews = Previews(self._session)
        self.metrics = MetricSums(self._session)
        self.wakeups = WakeupQueues(self._session, audit_s=settings.audit_s)

    @classmethod
    def connect(cls, url: RedisUrl | str, settings: QueueSettings, *, timeout_s: float, pause_s: float = 0.0) -> Self:
        """Open the ledger of the Redis at `url`; see `shared.ledger.connection.connect`."""
        return cls(connect(url, timeout_s=timeout_s), settings, pause_s=pause_s)

    @property
    def redis(self) -> Client:
        """The Redis client, for reads without a method in the ledger; it raises redis-py's own errors."""
        return self._session.redis

    def commands(self) -> AbstractContextManager[None]:
        """Run calls of `redis` in this context; raises `LedgerUnavailable` as the ledger's own calls do."""
        return self._session.commands()

    def ping(self) -> None:
        """Raise `LedgerUnavailable` unless Redis answers."""
        with self._session.commands():
            self.redis.ping()

    def refuse_unusable(self) -> None:
        """Raise `LedgerUnusable` if this Redis cannot hold the ledger; one that is away now may come back."""
        try:
            self.ping()
        except LedgerUnusable:
            raise
        except LedgerUnavailable:
            return

    def check_permissions(self) -> None:
        """Raise `LedgerForbidden` if this user of Redis may not run a command of the service; nothing is written."""
        with self._session.commands():
            permissions.check_permissions(self.redis)

    def check_writable(self) -> None:
        """Raise `LedgerRefused` if Redis takes no writes: a replica, or a full memory or disk, still serves reads."""
        with self._session.commands():
            # No such list exists, so nothing is written. Unlike deleting, a full Redis refuses it.
            self.redis.lpushx(keys.WRITE_PROBE, "")

    def now_ms(self) -> int:
        """Return the ledger's time in ms since the epoch."""
        return self._session.now_ms()

    def durability_issues(self) -> list[durability.DurabilityIssue]:
        """Return the ways in which this Redis may lose writes that it acknowledged; empty if it is durable."""
        with self._session.commands():
            return durability.find_issues(self.redis)

    def accept(
        self,
        job_id: str,
        items: Sequence[ItemSpec],
        *,
        record: Mapping[str, Any],
        tenant: str = "default",
        priority: int = 5,
        idempotency_key: str = "",
        body_hash: str = "",
        webhook_url: str = "",
        webhook_events: Collection[WebhookEvent] = (),
        deadline_s: float | None = None,
        compact: bool = True,
    ) -> AcceptedJob:
        """Store and queue one job durably; see `Submission` for the arguments and `accept_all` for the errors."""
        submission = Submission(
            job_id=job_id,
            items=items,
            record=record,
            tenant=tenant,
            priority=priority,
            idempotency_key=idempotency_key,
            body_hash=body_hash,
            webhook_url=webhook_url,
            webhook_events=webhook_events,
            deadline_s=deadline_s,
            compact=compact,
        )
        return self.accept_all([submission])[0]

    def accept_all(self, submissions: Sequence[Submission], *, key: KeyUse | None = None) -> list[AcceptedJob]:
        """Store and queue jobs durably, all of them or none; return a repeat for each job that is stored already.

        Args:
            key: what the caller's API key may have queued and submit; a repeat and a refused job count as nothing.

        Raises:
            KeyForbids, KeyLimitReached: the new items exceed a limit of the key; nothing was stored.
            IdempotencyKeyReused: a key was used with another body before; nothing was stored.
            JobTooLarge: the new items of a pool exceed the cap by themselves; nothing was stored.
            QueueFull: a pool has no room for all new items now; nothing was stored.
        """
        rows = self._acceptor.accept(submissions, key=key)
        return [
            AcceptedJob.from_stored(job_id, is_repeat=state == "repeat", accepted_ms=accepted_ms, record=record)
            for state, job_id, accepted_ms, record in rows
        ]

    def find_repeat(self, idempotency_key: str, *, tenant: str, body_hash: str) -> AcceptedJob | None:
        """Return the job that was accepted with this key and body; None if there is no such job.

        Raises:
            IdempotencyKeyReused: the key was used with another body.
        """
        job_id = self._acceptor.find_repeat(idempotency_key, tenant=tenant, body_hash=body_hash)
        if job_id is None:
            return None
        with self._session.commands():
            accepted_ms, record = self.redis.hmget(keys.job(job_id), "accepted_ms", "record")
        if record is None:
            # A process of an earlier version forgot the job before its key.
            return None
        return AcceptedJob.from_stored(job_id, is_repeat=True, accepted_ms=accepted_ms, record=record)

    def peek_next(self, pools: Sequence[str], *, slot: str, warm: str) -> ItemSpec | None:
        """Return the item that `claim_next` would claim now, without claiming it.

        Other slots leave its adapters to this one, until it claims an item.
        """
        # Only a guess: other slots claim items too, and new items arrive.
        return self._claims.peek(pools, slot=slot, warm=warm)

    def claim_next(
        self, pools: Sequence[str], *, slot: str, boot: str, warm: str, probed_outage: str = ""
    ) -> Claim | None:
        """Claim the best queued item for a slot; None when nothing is queued.

        After `LedgerUnavailable`, call again: the slot may own an item of which nobody knows, and the next call returns
        it with a full lease.

        Args:
            pools: the pools whose items the slot runs.
            boot: identity of this worker process, by which `reclaim` distinguishes its claims from its predecessor's.
            warm: key of the adapters that are merged in this slot now.
            probed_outage: the last `StorageOutageReported.outage_id` after which this worker reached the storage.

        Raises:
            StorageOutageReported: another worker reports an outage of the storage; nothing was claimed.
        """
        return self._claims.claim(pools, slot=slot, boot=boot, warm=warm, probed_outage=probed_outage)

    def renew(self, claim: Claim, progress: Progress, *, gpu_s: float = 0.0) -> Literal["ok", "cancel", "lost"]:
        """Extend the lease; the answer carries the caller's cancel, or that another worker owns the item.

        Args:
            gpu_s: seconds for which the attempt has occupied its device so far; they count if its worker dies.
        """
        answer: Literal["ok", "cancel", "lost"] = self._session.run(
            "renew",
            item_id=claim.item_id,
            fence=claim.fence,
            lease_ttl_ms=to_ms(self._settings.lease_ttl_s),
            progress_json=progress.model_dump_json(),
            gpu_ms=round(1000 * gpu_s),
        )
        return answer

    def commit(
        self, claim: Claim, outcome: ItemResult | ItemError | None, *, gpu_s: float | None = None
    ) -> CommitAnswer:
        """End the item as succeeded (a result), failed (an error) or canceled (None), and count what it used.

        Args:
            gpu_s: seconds for which the attempt occupied its device; None for those of its last renewal.

        Returns:
            `canceled` when an acknowledged cancel overrode the outcome; `stale` when another claim owns the item, so
            nothing was written; `repeated` when this same commit had taken effect already.
        """
        return end_item(
            self._session, self._settings, claim.item_id, claim.fence, outcome=outcome, gpu_s=gpu_s, spec=claim.spec
        )

    def release(
        self,
        claim: Claim,
        reason: Literal["drain", "outage", "retry", "later"],
        error: ItemError = WORKER_LOST,
        *,
        gpu_s: float | None = None,
    ) -> Literal["queued", "failed", "canceled", "stale"]:
        """Hand a running item back to the queue.

        Args:
            reason: `retry` and `later` count the attempt. `later` puts the item behind all others, instead of at the
                head of the queue.
            error: the item's error, if this was the last attempt and the item ends as failed.
            gpu_s: as in `commit`.
        """
        answer: Literal["queued", "failed", "canceled", "stale"] = self._session.run(
            "release",
            item_id=claim.item_id,
            fence=claim.fence,
            reason=reason,
            max_attempts=self._settings.max_attempts,
            error_json=error.model_dump_json(),
            **self._usage_arguments(gpu_s),
        )
        return answer

    def release_too_large(
        self, claim: Claim, *, memory_bytes: int, error: ItemError, too_large: ItemError, gpu_s: float | None = None
    ) -> Literal["queued", "failed", "canceled", "stale"]:
        """Queue an item that did not fit on a device for the live slots with the most memory; the attempt counts.

        Args:
            memory_bytes: memory of the device; 0 if it is unknown.
            error: the item's error, if this was the last attempt.
            too_large: the item's error, if no live slot that offers the item's pool reports more memory.
            gpu_s: as in `commit`.
        """
        answer: Literal["queued", "failed", "canceled", "stale"] = self._session.run(
            "release",
            item_id=claim.item_id,
            fence=claim.fence,
            reason="memory",
            max_attempts=self._settings.max_attempts,
            error_json=error.model_dump_json(),
            large_pool=large_pool(claim.pool),
            memory_gib=memory_gib(memory_bytes),
            too_large_json=too_large.model_dump_json(),
            slot_ttl_ms=SLOT_TTL_MS,
            **self._usage_arguments(gpu_s),
        )
        return answer

    def _usage_arguments(self, gpu_s: float | None = None) -> dict[str, int | None]:
        """Return what a script needs that ends an attempt."""
        return {"gpu_ms": None if gpu_s is None else round(1000 * gpu_s), "usage_ttl_s": usage_ttl_s(self._settings)}

    def cancel(self, job_id: str, *, tenant: str | None = None) -> bool:
        """Cancel the unfinished items of a job; return False if no such job exists. An ended job does not change.

        Args:
            tenant: a job of another tenant does not exist for the caller; None cancels that of any.
        """
        return bool(self._session.run("cancel", jobs=[job_id], tenant=tenant))

    def reap(self) -> ReapResult:
        """Requeue or end the items whose lease expired.

        If Redis stalled or could not be reached since the last pass of any process, that time does not count against a
        lease. If it restarted or its clock went back, every lease first gets a full term.
        """
        reply = json.loads(
            self._session.run(
                "reap",
                lease_ttl_ms=to_ms(self._settings.lease_ttl_s),
                reap_ms=to_ms(self._settings.reap_period_s),
                max_attempts=self._settings.max_attempts,
                error_json=WORKER_LOST.model_dump_json(),
                **self._usage_arguments(),
            )
        )
        # cjson writes every empty Lua table as an object, even an empty list.
        return ReapResult(
            requeued=dict(reply["requeued"]), ended=list(reply["ended"]), grace=reply["grace"], slots=reply["slots"]
        )

    def expire_deadlines(self) -> int:
        """Cancel the queued items of jobs whose deadline has passed; return how many."""
        # Redis serves others between the steps; claims start none of these items in any case.
        total = 0
        for _ in range(_EXPIRE_STEPS):
            canceled, needs_more = self._session.run("expire_deadlines")
            total += int(canceled)
            if not needs_more:
                break
        return total

    def totals(self) -> Totals:
        """Return what the ledger counted since its first start."""
        return read_totals(self._session)

    def reclaim(self, *, slot: str, boot: str) -> int:
        """Requeue the items that an earlier process of this slot was running; return how many.

        Args:
            boot: identity of the slot's new process; its claims are not requeued.
        """
        with self._session.commands():
            candidates = find_unlisted_claims(self.redis, slot)
        requeued = self._session.run(
            "reclaim",
            slot=slot,
            boot=boot,
            candidates=candidates,
            max_attempts=self._settings.max_attempts,
            error_json=WORKER_LOST.model_dump_json(),
            **self._usage_arguments(),
        )
        return int(requeued)

    def forget_ended(self) -> int:
        """Forget some of the jobs that ended longer ago than the retention; return how many."""
        return int(self._session.run("forget", retention_ms=to_ms(self._settings.retention_s)))

    def job(self, job_id: str, *, tenant: str | None = None) -> JobView | None:
        """Read a job with all its items; None if no such job exists, or not for this tenant."""
        # The first read also returns Redis' time, which saves a round trip.
        with self._session.commands():
            return job_reader.read_job(
                self.redis, job_id, forecaster=self._forecaster, now_ms=self._session.clock_override_ms(), tenant=tenant
            )

    def outlook(self, job_id: str, *, items: int) -> Outlook:
        """Return the outlook of a new job with this number of items; it costs less than `job`."""
        now_ms = self._session.now_ms()
        with self._session.commands():
            return job_reader.read_outlook(self.redis, job_id, items=items, forecaster=self._forecaster, now_ms=now_ms)

    def estimate(self, new: NewItems) -> tuple[Outlook, float | None]:
        """Return the outlook of items that may come, and the seconds for which they occupy devices, None if unknown."""
        return self._forecaster.estimate(new)

    def ended_item(self, job_id: str, index: int) -> EndedItem | None:
        """Read one item that succeeded or failed; None if no such item exists any more."""
        with self._session.commands():
            return job_reader.read_ended_item(self.redis, job_id, index)

    def find_ended(self, job_ids: Sequence[str]) -> set[str]:
        """Return which of these jobs have ended: one small read for each, in one round trip."""
        with self._session.commands(), self.redis.pipeline(transaction=False) as pipe:
            for job_id in job_ids:
                pipe.hexists(keys.job(job_id), "finished_ms")
            return {job_id for job_id, has_ended in zip(job_ids, pipe.execute(), strict=True) if has_ended}

    def jobs(
        self,
        *,
        before: int | None,
        limit: int,
        state: str | None = None,
        model: str | None = None,
        tenant: str | None = None,
    ) -> JobPage:
        """List jobs, newest first, from the cursor `before` (an accept order, exclusive); see `listing.read_page`."""
        return listing.read_page(self._session, before=before, limit=limit, state=state, model=model, tenant=tenant)

    def index_tenants(self) -> int:
        """Put jobs that a process of an earlier version accepted into their tenants' listings; return how many."""
        # Redis serves others between the steps; a Redis with a million jobs is done within minutes.
        total = 0
        for _ in range(_INDEX_STEPS):
            count = int(self._session.run("index_tenants"))
            total += count
            if not count:
                break
        return total

    def upload_users(self, name: str, digests: Collection[str], *, tenant: str | None = None) -> int:
        """Count the jobs that have not ended and need one of these versions of an upload."""
        with self._session.commands():
            return count_users(self.redis, name, digests, tenant=tenant)

    def queue_length(self, pool: str) -> int:
        """Count the items of a pool that wait for a worker."""
        with self._session.commands():
            return int(self.redis.zcard(keys.pending(pool)))
