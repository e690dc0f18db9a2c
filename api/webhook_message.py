"""Write, sign and post one webhook message.

A message's id consists of the job and its final state, and its body is the same at each attempt, so that receivers can
recognise a repeat.

Source:
    https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus

import httpcore2
from standardwebhooks.webhooks import Webhook

from api.status_view import WIRE_STATUS, first_error, result_url
from api.timestamps import format_ms
from shared.ledger import JobView
from shared.ledger.views import EndedItem
from shared.network.addresses import GuardedBackend, host_header
from shared.settings import WebhookSettings
from shared.webhook_secrets import signing_secrets

# Errors are stored with the job in Redis and shown in its status; a library's message may be of any length.
_MAX_ERROR_LENGTH = 300


@dataclass(frozen=True)
class Delivery:
    """Outcome of one attempt.

    Attributes:
        error: why the receiver does not have the message; empty if it has.
        may_retry: whether another attempt can succeed.
        reached: whether the host answered; None if nothing was sent. A host that refused the connection or took too
            long is not asked again for a while.
    """

    error: str = ""
    may_retry: bool = True
    reached: bool | None = True


def message_id(job: JobView) -> str:
    return f"{job.job_id}:{WIRE_STATUS[job.state]}"


def message_body(job: JobView, *, base_url: str) -> str:
    """Return the message about a job that has ended; the text is the same at each attempt."""
    assert job.finished_ms is not None
    status = WIRE_STATUS[job.state]
    data = {
        "request_id": job.job_id,
        "status": status,
        "model": job.model,
        "items": [{"index": item.index, "status": WIRE_STATUS[item.state]} for item in job.items],
        "error": first_error(job),
        # Not the images' URLs: they expire, and a message may arrive three days later.
        "result_url": result_url(job.job_id, base_url=base_url),
        **({"sweep_id": job.sweep_id} if job.sweep_id else {}),
    }
    return json.dumps({"type": f"request.{status}", "timestamp": format_ms(job.finished_ms), "data": data})


def item_message_id(ended: EndedItem) -> str:
    return f"{ended.job_id}:{ended.item.index}:{WIRE_STATUS[ended.item.state]}"


def item_message_body(ended: EndedItem, *, base_url: str) -> str:
    """Return the message about an item that has ended; the text is the same at each attempt."""
    item = ended.item
    assert item.finished_ms is not None
    status = WIRE_STATUS[item.state]
    data = {
        "request_id": ended.job_id,
        "index": item.index,
        "status": status,
        "model": ended.model,
        "error": item.error.message if item.error else None,
        "result_url": result_url(ended.job_id, base_url=base_url),
    }
    return json.dumps({"type": f"item.{status}", "timestamp": format_ms(item.finished_ms), "data": data})


def post_message(url: str, *, message_id: str, body: str, tenant: str, settings: WebhookSettings) -> Delivery:
    """Sign a tenant's message and post it to a URL; `GuardedBackend` resolves and checks the host."""
    now = datetime.now(UTC)
    headers: dict[bytes | str, bytes | str] = {
        "Host": host_header(url),
        "Content-Type": "application/json",
        "User-Agent": "flux2-queue",
        "Connection": "close",
        "webhook-id": message_id,
        "webhook-timestamp": str(int(now.timestamp())),
        # A receiver accepts a message if one of the signatures is right.
        "webhook-signature": " ".join(
            Webhook(secret).sign(message_id, now, body) for secret in signing_secrets(settings, tenant)
        ),
    }
    backend = GuardedBackend(allow_private=settings.allow_private, timeout_s=settings.timeout_s)
    try:
        # httpcore2 follows no redirects, so a public URL cannot lead to a private one.
        with (
            httpcore2.ConnectionPool(network_backend=backend) as pool,
            pool.stream("POST", url, headers=headers, content=body.encode()) as answer,
        ):
            # Only the status is read: the body may be of any length.
            status = answer.status
    except (httpcore2.NetworkError, httpcore2.TimeoutException, httpcore2.ProtocolError, ValueError) as error:
        is_unreachable = isinstance(error, httpcore2.ConnectError | httpcore2.TimeoutException)
        return Delivery(error=f"{type(error).__name__}: {error}"[:_MAX_ERROR_LENGTH], reached=not is_unreachable)
    if 200 <= status < 300:
        return Delivery()
    # By the standard, a receiver unsubscribes with 410 Gone.
    return Delivery(error=f"answered {status}", may_retry=status != HTTPStatus.GONE)
