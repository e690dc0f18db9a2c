"""The messages of webhooks: each event with a body that the code for sending makes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Final, get_args

from api.webhook_message import item_message_body, item_message_id, message_body, message_id
from shared.job import ItemError, State, WebhookEvent
from shared.ledger.views import EndedItem, ItemView, JobView
from tools.reference.markdown import table

_JOB_ID: Final = "5d1f0a52-7c1e-4b57-9f0e-3f6f3c1f8a10"
_BASE_URL: Final = "https://flux2.example.com"
_ENDED_MS: Final = 1_767_268_800_000
_ERROR: Final = ItemError(
    code="out_of_memory", message="the device could not hold the image; use a smaller size", retryable=False
)
_ANY: Final = "request.*"


def write_events() -> str:
    """Return a table of the events, and the body of a message of each."""
    events = [event for event in get_args(WebhookEvent) if event != _ANY]
    parts = [table(["event", "when", "`webhook-id`"], map(_describe, events)), *map(_example, events)]
    return "\n".join(parts)


def _describe(event: str) -> tuple[str, str, str]:
    about, _, status = event.partition(".")
    whole = {
        "succeeded": "every image succeeded",
        "failed": "an image failed",
        "canceled": "the job was canceled, or its deadline canceled images",
    }
    when = f"the job has ended: {whole[status]}" if about == "request" else f"an image {status}"
    return f"`{event}`", when, f"`ID:{status}`" if about == "request" else f"`ID:INDEX:{status}`"


def _example(event: str) -> str:
    about, _, status = event.partition(".")
    if about == "item":
        ended = EndedItem(job_id=_JOB_ID, model="flux2", tenant="default", item=_item(1, State(status)))
        name, body = item_message_id(ended), item_message_body(ended, base_url=_BASE_URL)
    else:
        job = _job(State(status))
        name, body = message_id(job), message_body(job, base_url=_BASE_URL)
    return f"### {event}\n\n```json\n{json.dumps(json.loads(body), indent=2)}\n```\n\n`webhook-id: {name}`\n"


def _job(state: State) -> JobView:
    return JobView(
        job_id=_JOB_ID,
        model="flux2",
        state=state,
        cancel_requested=state is State.CANCELED,
        record={},
        accepted_ms=_ENDED_MS - 20_000,
        started_ms=_ENDED_MS - 19_000,
        finished_ms=_ENDED_MS,
        queue_position=None,
        eta_s=None,
        items=tuple(_items(state)),
    )


def _items(state: State) -> Iterator[ItemView]:
    yield _item(0, State.SUCCEEDED)
    yield _item(1, state)


def _item(index: int, state: State) -> ItemView:
    return ItemView(
        index=index,
        state=state,
        attempt=1,
        fence=1,
        spec=None,
        steps=25,
        progress=None,
        result=None,
        error=_ERROR if state is State.FAILED else None,
        queued_ms=_ENDED_MS - 20_000,
        started_ms=_ENDED_MS - 19_000,
        finished_ms=_ENDED_MS,
        slot=None,
    )
