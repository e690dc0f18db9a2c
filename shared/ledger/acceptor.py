"""Accept jobs, alone or as those of a sweep: the one call of `accept.lua`, and what its refusals mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from shared.errors import Flux2Error, IdempotencyKeyReused, JobTooLarge, QueueFull
from shared.ledger import keys
from shared.ledger.acceptance import AcceptedSweep, Submission, SweepSubmission
from shared.ledger.compact_form import CompactForm
from shared.ledger.key_use import KeyUse
from shared.ledger.outlook import Forecaster
from shared.ledger.session import Session
from shared.settings import QueueSettings

_STORED: Final = "stored"


class Acceptor:
    """Accepts the jobs of one call, all of them or none; see `Ledger.accept_all` for the errors."""

    def __init__(self, session: Session, settings: QueueSettings, forecaster: Forecaster) -> None:
        self._session = session
        self._settings = settings
        self._forecaster = forecaster
        self._compact_form = CompactForm(session)

    def accept(self, submissions: Sequence[Submission], *, key: KeyUse | None) -> list[list[str]]:
        """Return for each job: `accepted` or `repeat`, its id, the time of its accept in ms, and its record."""
        rows: list[list[str]] = self._run(submissions, key=key, sweep=None)[1:]
        return rows

    def accept_sweep(
        self, sweep: SweepSubmission, submissions: Sequence[Submission], *, key: KeyUse | None
    ) -> AcceptedSweep:
        """Store a sweep with its jobs; for a repeat, return the sweep that was accepted before."""
        outcome, *values = self._run(submissions, key=key, sweep=sweep.arguments(submissions))
        if outcome != _STORED:
            return AcceptedSweep.from_stored(*values)
        _, _, accepted_ms, _ = values[0]
        # From what was sent: a second read that fails would answer that nothing was accepted.
        return AcceptedSweep(
            sweep.sweep_id,
            is_repeat=False,
            accepted_ms=int(accepted_ms),
            record=sweep.record,
            job_ids=[job.job_id for job in submissions],
        )

    def find_repeat(self, idempotency_key: str, *, tenant: str, body_hash: str) -> str | None:
        """Return the id of the job or the sweep that was accepted with this key and body; None if there is none.

        Raises:
            IdempotencyKeyReused: the key was used with another body.
        """
        with self._session.commands():
            seen = self._session.redis.get(keys.idempotency(tenant, idempotency_key))
        if seen is None:
            return None
        known_hash, found_id = str(seen).split()
        if known_hash != body_hash:
            raise _reused(idempotency_key)
        return found_id

    def _run(self, submissions: Sequence[Submission], *, key: KeyUse | None, sweep: Mapping[str, Any] | None) -> Any:
        # The script checks every job before it stores the first one: Redis does not undo a script that ends early.
        is_due = self._compact_form.is_due()
        outcome, *values = self._session.run(
            "accept",
            jobs=[submission.arguments(compact=submission.compact and is_due) for submission in submissions],
            compact_from_ms=self._compact_form.start_ms(),
            cap=self._settings.cap,
            idempotency_ttl_s=self._settings.idempotency_ttl_s,
            key=None if key is None else key.arguments(),
            sweep=sweep,
        )
        if outcome == "limit" and key is not None:
            raise self._limit_reached(key, submissions[0], *values)
        if outcome == "conflict":
            raise _reused(values[0])
        if outcome == "full":
            raise self._full(*values)
        return [outcome, *values]

    def _limit_reached(self, key: KeyUse, first: Submission, name: str, *numbers: str) -> Flux2Error:
        used, asked, left_ms = map(int, numbers)
        room_after_s = None
        if name == "queued_items" and key.queued_items is not None:
            excess = used + asked - key.queued_items
            room_after_s = self._forecaster.room_after_s(first.pool, excess, tenant=first.tenant)
        return key.refusal(name, used=used, asked=asked, left_ms=left_ms, room_after_s=room_after_s)

    def _full(self, pending_text: str, asked_text: str, pool: str) -> Flux2Error:
        pending, asked, cap = int(pending_text), int(asked_text), self._settings.cap
        if asked > cap:
            return JobTooLarge(asked, pending=pending, cap=cap)
        retry_after_s = self._forecaster.room_after_s(pool, pending + asked - cap)
        return QueueFull(asked, pending=pending, cap=cap, retry_after_s=retry_after_s)


def _reused(idempotency_key: str) -> IdempotencyKeyReused:
    return IdempotencyKeyReused(
        f"Idempotency-Key {idempotency_key!r} belongs to another request body; send a new key with a new body"
    )
