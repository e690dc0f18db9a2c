"""Mutations: each breaks one promise on purpose, since a checker that never fails proves nothing."""

from __future__ import annotations

from enum import StrEnum
from unittest import mock

from celery.signals import celeryd_init

from shared.caretaker import Caretaker
from shared.ledger import lua


class Mutation(StrEnum):
    """The safeguard that a mutation removes from the product."""

    NONE = "none"
    FENCE = "no fence check"
    AUDIT = "no audit"
    GRACE = "no grace"
    RECONNECT = "no reconnect"
    IDEMPOTENCY = "no idempotency"
    COUNT_STALE = "usage counted for stale commits"
    COUNT_FIRST = "usage counted for first claims only"


# Lines of the assembled scripts, word for word: `_rewrite` fails when a script changes, instead of mutating nothing.
_FENCE = "if tonumber(fence or 0) ~= args.fence then return 'stale' end"
_OWNED = "return state == 'running' and tonumber(current) == fence"
_GRACE = "if restarted or is_stall(ttl_ms) then"
_REPEATED = "if seen then"
_COUNT = "count_attempt(id, job, tenant, to == 'succeeded', now)"
# The fields of an ended item name neither its job nor its tenant.
_STALE_COUNT = """if tonumber(fence or 0) ~= args.fence then
  local stale_job = job_and_index(id)
  count_attempt(id, stale_job, redis.call('HGET', 'flux2:job:' .. stale_job, 'tenant'), outcome == 'succeeded', now)
  return 'stale'
end"""


def apply_mutation(mutation: Mutation) -> None:
    """Remove a safeguard from the code of this process."""
    match mutation:
        case Mutation.FENCE:
            _rewrite("commit", _FENCE, "")
            _rewrite("renew", _OWNED, "return state == 'running'")
        case Mutation.GRACE:
            _rewrite("reap", _GRACE, "if false then")
        case Mutation.COUNT_STALE:
            _rewrite("commit", _FENCE, _STALE_COUNT)
        case Mutation.COUNT_FIRST:
            _rewrite("commit", _COUNT, f"if args.fence == 1 then {_COUNT} end")
        case Mutation.IDEMPOTENCY:
            _rewrite("accept", _REPEATED, "if false then")
        case Mutation.RECONNECT:
            # Celery sends this signal before it reads its settings.
            celeryd_init.connect(lambda conf, **_: conf.update(broker_channel_error_retry=False), weak=False)
        case Mutation.AUDIT:
            mock.patch.object(Caretaker, "audit", return_value=None).start()


def _rewrite(script: str, old: str, new: str) -> None:
    texts = lua.scripts()
    if old not in texts[script]:
        raise ValueError(f"{script}.lua has no line {old!r}; adapt chaos/mutate.py to the script")
    texts[script] = texts[script].replace(old, new)
