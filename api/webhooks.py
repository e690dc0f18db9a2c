"""Deliver the outbox: a thread sends the webhook messages of ended jobs until their receivers confirm them.

Every API process runs such a thread, and the ledger gives each message to one of them at a time.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Final

from api.webhook_message import (
    Delivery,
    item_message_body,
    item_message_id,
    message_body,
    message_id,
    post_message,
)
from shared.errors import LedgerUnavailable
from shared.ledger import Ledger
from shared.ledger.outbox import WebhookMessage
from shared.log_context import item_context, request_context
from shared.settings import Settings
from shared.tracing import NO_TRACER, Tracer

logger = logging.getLogger("flux2.api.webhooks")

#: Seconds from each failed attempt to the next: over three days in all, then the message is given up.
RETRY_WAITS_S: Final = (5, 60, 300, 1800, 7200, 18_000, 36_000, 50_400, 72_000, 86_400)
_POLL_S = 1.0
_SENDERS = 8
# A reservation outlasts the longest attempt by this much, so that no second sender starts while one still sends.
_RESERVE_MARGIN_S = 10


class Courier(threading.Thread):
    """Sends due messages until it is stopped. The application starts it only if a secret is set."""

    def __init__(self, ledger: Ledger, settings: Settings, *, tracer: Tracer = NO_TRACER) -> None:
        super().__init__(name="flux2-courier", daemon=True)
        self._ledger = ledger
        self._tracer = tracer
        self._settings = settings.webhook
        self._base_url = (settings.api.base_url or "").rstrip("/")
        self._stopped = threading.Event()
        # Set when a sender becomes free, and by `stop`.
        self._wake = threading.Event()

    def run(self) -> None:
        attempts: set[Future[None]] = set()
        with ThreadPoolExecutor(_SENDERS, thread_name_prefix="flux2-courier") as senders:
            while not self._stopped.is_set():
                self._wake.clear()
                attempts = {attempt for attempt in attempts if not attempt.done()}
                # Before the reservation begins, so that a late sender knows that it is late.
                reserved_at = time.monotonic()
                # No more messages than free senders: one that waits for a sender could lose its reservation.
                for message in self._reserve(_SENDERS - len(attempts)):
                    attempt = senders.submit(self._deliver, message, reserved_at)
                    attempts.add(attempt)
                    attempt.add_done_callback(lambda _: self._wake.set())
                self._wake.wait(_POLL_S)

    def stop(self) -> None:
        """End the thread and wait for the attempts that are under way."""
        self._stopped.set()
        self._wake.set()
        if self.is_alive():
            self.join()

    def _reserve(self, free_senders: int) -> Sequence[WebhookMessage]:
        """Return at most one message for each free sender; log every error."""
        try:
            return self._ledger.outbox.reserve_due(
                reserve_s=self._settings.timeout_s + _RESERVE_MARGIN_S, limit=free_senders
            )
        except LedgerUnavailable as error:
            logger.warning("courier waits for Redis", extra={"error": str(error)})
        except Exception:
            # A defect must not end the thread: no message would be sent until the next restart.
            logger.exception("due messages cannot be read; the courier tries again")
        return []

    def _deliver(self, message: WebhookMessage, reserved_at: float) -> None:
        """Send one message and record the outcome; log every error."""
        # Never raises: an error in one message must not delay the others.
        with _log_context(message):
            try:
                delivery = self._attempt(message, reserved_at)
                if delivery is not None:
                    self._record(message, delivery)
            except LedgerUnavailable as error:
                # The message is due again when its reservation ends; receivers recognise the repeat by its id.
                extra = {"attempt": message.attempt, "error": str(error)}
                logger.warning("outcome not recorded; the message is sent again", extra=extra)
            except Exception:
                extra = {"attempt": message.attempt}
                logger.exception("outcome not recorded; the message is sent again", extra=extra)

    def _attempt(self, message: WebhookMessage, reserved_at: float) -> Delivery | None:
        """Send one message; return None if its job's record has expired, or if it is too late to send it."""
        try:
            written = self._write(message)
            if written is None:
                return None
            name, body, tenant, trace = written
            if time.monotonic() - reserved_at > _RESERVE_MARGIN_S:
                # The process stood still: another sender may have the message before this attempt would end.
                logger.warning("message reserved too long ago; it is sent later", extra={"attempt": message.attempt})
                return None
            with self._tracer.span("webhook", parent=trace, kind="client", attempt=message.attempt) as span:
                delivery = post_message(message.url, message_id=name, body=body, tenant=tenant, settings=self._settings)
                if delivery.error:
                    # Without the message, which may quote an address.
                    span.fail(delivery.error.partition(":")[0])
            return delivery
        except LedgerUnavailable:
            raise
        except Exception as error:
            # An unreadable record or a defect counts as an attempt: a process of another version may succeed later.
            logger.exception("message not sent", extra={"attempt": message.attempt})
            return Delivery(error=f"not sent: {type(error).__name__}", reached=None)

    def _write(self, message: WebhookMessage) -> tuple[str, str, str, str] | None:
        """Return id, body, tenant and trace of a message; None if its job's record has expired."""
        if message.index is not None:
            ended = self._ledger.ended_item(message.job_id, message.index)
            if ended is None:
                return None
            body = item_message_body(ended, base_url=self._base_url)
            return item_message_id(ended), body, ended.tenant, ended.trace
        job = self._ledger.job(message.job_id)
        if job is None:
            return None
        return message_id(job), message_body(job, base_url=self._base_url), job.tenant, job.trace

    def _record(self, message: WebhookMessage, delivery: Delivery) -> None:
        extra = {"attempt": message.attempt, "error": delivery.error}
        if not delivery.error:
            logger.info("webhook delivered", extra=extra)
            self._ledger.outbox.mark_delivered(message)
        elif delivery.may_retry and message.attempt <= len(RETRY_WAITS_S):
            logger.warning("webhook not delivered; the next attempt follows later", extra=extra)
            self._ledger.outbox.postpone(
                message,
                wait_s=RETRY_WAITS_S[message.attempt - 1],
                error=delivery.error,
                reached=delivery.reached,
            )
        else:
            logger.error("webhook given up", extra=extra)
            self._ledger.outbox.mark_failed(message, error=delivery.error, reached=delivery.reached)


def _log_context(message: WebhookMessage) -> AbstractContextManager[None]:
    """Name the request of a message, and its item if it is about one, in the lines of a block."""
    if message.index is None:
        return request_context(message.job_id)
    return item_context(f"{message.job_id}:{message.index}")
