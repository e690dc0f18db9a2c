"""The job that a caller submits to the ledger, and the ledger's answer."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from shared.job import ItemSpec, State, WebhookEvent, features_of, pool
from shared.ledger.session import to_ms
from shared.ledger.shape import Shape
from shared.ledger.spec_parts import split_specs
from shared.ledger.usage_rows import name_adapters, pixel_steps

_JOB_ENDS = (State.SUCCEEDED, State.FAILED, State.CANCELED)
_ITEM_ENDS = (State.SUCCEEDED, State.FAILED)


@dataclass(frozen=True)
class Submission:
    """A job that can be stored.

    Attributes:
        items: at least one, all of one model and engine.
        record: facts about the job that the API reads later; must be JSON.
        priority: 0 (first) to 9.
        idempotency_key: empty if the caller sent no key.
        body_hash: identity of the request body, compared when the key occurs again; without white space.
        webhook_url: receives messages about the job; empty for none.
        webhook_events: the messages that it receives; empty for one when the job ends, however it ends.
        key_id: the API key of the caller; empty without one.
        deadline_s: seconds after the accept at which the items that wait for a worker are canceled; None for never.
        compact: whether every live worker reads the compact form; see `shared.ledger.spec_parts`.
        trace: the `traceparent` of the submit, from which workers go on; empty if it is not traced.
    """

    job_id: str
    items: Sequence[ItemSpec]
    record: Mapping[str, Any]
    tenant: str = "default"
    priority: int = 5
    idempotency_key: str = ""
    body_hash: str = ""
    webhook_url: str = ""
    webhook_events: Collection[WebhookEvent] = ()
    key_id: str = ""
    deadline_s: float | None = None
    compact: bool = True
    trace: str = ""

    @property
    def pool(self) -> str:
        """The pool in which all items wait, for workers that can run each of them."""
        first = self.items[0]
        return pool(first.model, first.engine, features_of(self.items))

    def arguments(self, *, compact: bool) -> dict[str, Any]:
        """Return the job as `accept.lua` reads it.

        Args:
            compact: whether the job is stored in the compact form.
        """
        # Empty options are left out: the script tests for their absence.
        options = {
            "idempotency_key": self.idempotency_key,
            **self._webhook(),
            "key_id": self.key_id,
            "trace": self.trace,
            # Not 0, which would be left out.
            "deadline_ms": None if self.deadline_s is None else max(1, to_ms(self.deadline_s)),
        }
        return {
            "id": self.job_id,
            "pool": self.pool,
            "model": self.items[0].model,
            "tenant": self.tenant,
            "priority": self.priority,
            "adapters": name_adapters(self.items[0].adapters),
            "pixel_steps": sum(map(pixel_steps, self.items)),
            # Text inside the JSON, so that Redis stores these bytes; see the top of prelude.lua.
            "record": json.dumps(self.record),
            **(self._parts() if compact else self._whole_specs()),
            "body_hash": self.body_hash,
            **{name: value for name, value in options.items() if value},
        }

    def _webhook(self) -> dict[str, str]:
        chosen = set(self.webhook_events or ("request.*",))
        states = [state for state in _JOB_ENDS if chosen & {"request.*", f"request.{state}"}]
        item_states = [state for state in _ITEM_ENDS if f"item.{state}" in chosen]
        return {
            "webhook_url": self.webhook_url if states else "",
            # Without it, any end counts, as for a process of an earlier version.
            "webhook_states": ",".join(states) if len(states) < len(_JOB_ENDS) else "",
            "item_webhook_url": self.webhook_url if item_states else "",
            "item_states": ",".join(item_states),
        }

    def _parts(self) -> dict[str, Any]:
        return {"items": [_item(spec) for spec in self.items], "specs": split_specs(self.items)}

    def _whole_specs(self) -> dict[str, Any]:
        return {"items": [{"spec": spec.model_dump_json(), **_item(spec)} for spec in self.items]}


def _item(spec: ItemSpec) -> dict[str, str]:
    return {"adapter_key": spec.adapter_key, "shape": str(Shape.of(spec))}


@dataclass(frozen=True)
class AcceptedJob:
    """A job that is stored.

    Attributes:
        is_repeat: whether an earlier call stored the job under the same Idempotency-Key.
    """

    job_id: str
    is_repeat: bool
    accepted_ms: int
    record: Mapping[str, Any]

    @classmethod
    def from_stored(cls, job_id: str, *, is_repeat: bool, accepted_ms: str, record: str) -> Self:
        """Build the answer from the fields of the job's hash."""
        return cls(job_id=job_id, is_repeat=is_repeat, accepted_ms=int(accepted_ms), record=json.loads(record))


@dataclass(frozen=True)
class SweepSubmission:
    """A sweep that can be stored with its jobs, which have no Idempotency-Keys of their own.

    Attributes:
        record: JSON text that the API reads later.
        idempotency_key, body_hash: as in `Submission`.
    """

    sweep_id: str
    model: str
    record: str
    tenant: str = "default"
    idempotency_key: str = ""
    body_hash: str = ""

    def arguments(self, jobs: Sequence[Submission]) -> dict[str, Any]:
        """Return the sweep of these jobs as `accept.lua` reads it."""
        return {
            "id": self.sweep_id,
            "model": self.model,
            "tenant": self.tenant,
            "record": self.record,
            "jobs": json.dumps([job.job_id for job in jobs]),
            "body_hash": self.body_hash,
            **({"idempotency_key": self.idempotency_key} if self.idempotency_key else {}),
        }


@dataclass(frozen=True)
class AcceptedSweep:
    """A sweep that is stored.

    Attributes:
        is_repeat: as in `AcceptedJob`.
        accepted_ms: when it was accepted, in ms since the epoch.
        record: JSON text that the API stored with it.
        job_ids: in the order in which the jobs were queued.
    """

    sweep_id: str
    is_repeat: bool
    accepted_ms: int
    record: str
    job_ids: Sequence[str]

    @classmethod
    def from_stored(cls, sweep_id: str, accepted_ms: str, jobs: str, record: str) -> Self:
        """Build the answer to a repeat from the fields of the sweep's hash."""
        return cls(sweep_id, is_repeat=True, accepted_ms=int(accepted_ms), record=record, job_ids=json.loads(jobs))
