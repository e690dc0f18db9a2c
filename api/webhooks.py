"""Tell callers that their jobs have ended: Standard Webhooks, from the ledger's outbox, until they are delivered.

Any number of API processes send at once; workers never do. A message's id is the job and the state it ended in, and
its body is the same at each attempt, so that receivers can tell a repeat.

Source:
    https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
"""

from __future__ import annotations

import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from ipaddress import ip_address
from typing import Final
from urllib.parse import urlsplit

import httpcore2
from standardwebhooks.webhooks import Webhook

from api import views
from api.addresses import GuardedBackend, is_public
from shared.errors import InvalidRequest, LedgerUnavailable
from shared.ledger import Ledger
from shared.ledger.outbox import Message
from shared.settings import Settings, WebhookSettings

logger = logging.getLogger("flux2.api.webhooks")

#: Seconds from each failed attempt to the next, over three days; then the message is given up.
WAITS_S: Final = (5, 60, 300, 1800, 7200, 18_000, 36_000, 50_400, 72_000, 86_400)
_LOOK_S = 1.0
_SENDERS = 8
_GONE = 410


def check_webhook(url: str, settings: WebhookSettings) -> None:
    """Refuse a URL that can never be sent to; what its name resolves to is looked at when it is.

    Raises:
        InvalidRequest: naming what is wrong with it.
    """
    if settings.secret is None:
        raise _invalid("webhooks are switched off here: FLUX2_WEBHOOK_SECRET is not set")
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
    except ValueError as error:
        raise _invalid(f"{url!r} is not a URL: {error}") from error
    schemes = ("https", "http") if settings.allow_private else ("https",)
    if parts.scheme not in schemes:
        raise _invalid(f"{url!r} must begin with {' or '.join(f'{scheme}://' for scheme in schemes)}")
    if not host or parts.username is not None or parts.fragment or not url.isascii() or set(url) & set(" \r\n\t"):
        raise _invalid(f"{url!r} must have a host, and no user, fragment, space or character beyond ASCII")
    try:
        address = ip_address(host)
    except ValueError:
        return
    if not settings.allow_private and not is_public(address):
        raise _invalid(f"{host} is not a public address")


def _invalid(message: str) -> InvalidRequest:
    return InvalidRequest(message, code="INVALID_WEBHOOK_URL", field="webhook_url")


class Courier(threading.Thread):
    """Sends what is in the outbox until stopped. It is only started where a secret is set."""

    def __init__(self, ledger: Ledger, settings: Settings) -> None:
        super().__init__(name="flux2-courier", daemon=True)
        self._ledger = ledger
        self._settings = settings.webhook
        self._base_url = (settings.api.base_url or "").rstrip("/")
        self._stopped = threading.Event()

    def run(self) -> None:
        with ThreadPoolExecutor(_SENDERS, thread_name_prefix="flux2-courier") as senders:
            while not self._stopped.wait(_LOOK_S):
                try:
                    due = self._ledger.outbox.reserve_due(reserve_s=self._settings.timeout_s + 10, limit=_SENDERS)
                except LedgerUnavailable as error:
                    logger.warning("courier waits for Redis", extra={"error": str(error)})
                    continue
                except Exception:
                    logger.exception("messages not taken; the courier looks again")
                    continue
                # Waited for, so that no more is taken than can be sent within the hold.
                list(senders.map(self._deliver, due))

    def stop(self) -> None:
        """End the loop and wait for what is being sent."""
        self._stopped.set()
        if self.is_alive():
            self.join()

    def _deliver(self, message: Message) -> None:
        """Send one message and say what became of it; nothing that is wrong with it may keep others from being sent."""
        try:
            outcome = self._attempt(message)
            if outcome is not None:
                self._settle(message, *outcome)
        except LedgerUnavailable as error:
            logger.warning("message not settled; it is sent again", extra={"job": message.job_id, "error": str(error)})
        except Exception:
            # It comes again when the hold on it is over.
            logger.exception("message not settled; it is sent again", extra={"job": message.job_id})

    def _attempt(self, message: Message) -> tuple[bool, str] | None:
        """Return what `_post` does; None when the job was forgotten meanwhile."""
        try:
            body = self._body(message)
            return None if body is None else self._post(message, *body)
        except LedgerUnavailable:
            raise
        except Exception as error:
            # A record that cannot be read, or a defect: another version's process may do better later.
            logger.exception("message not written", extra={"job": message.job_id, "attempt": message.attempt})
            return True, f"not sent: {type(error).__name__}"

    def _body(self, message: Message) -> tuple[str, str] | None:
        """Return the message's id and text; None when the job was forgotten meanwhile."""
        job = self._ledger.job(message.job_id)
        if job is None:
            return None
        return f"{message.job_id}:{views.status(job).status}", views.ended_message(job, base_url=self._base_url)

    def _post(self, message: Message, message_id: str, body: str) -> tuple[bool, str]:
        """Return whether another attempt makes sense, and what went wrong, if anything did."""
        assert self._settings.secret is not None
        now = datetime.now(UTC)
        headers: dict[bytes | str, bytes | str] = {
            "Content-Type": "application/json",
            "User-Agent": "flux2-queue",
            "Connection": "close",
            "webhook-id": message_id,
            "webhook-timestamp": str(int(now.timestamp())),
            "webhook-signature": Webhook(self._settings.secret.get_secret_value()).sign(message_id, now, body),
        }
        backend = GuardedBackend(allow_private=self._settings.allow_private, timeout_s=self._settings.timeout_s)
        try:
            # The status alone is read: the answer's body may be of any length. Redirects are not followed.
            with (
                httpcore2.ConnectionPool(network_backend=backend) as pool,
                pool.stream("POST", message.url, headers=headers, content=body.encode()) as answer,
            ):
                status = answer.status
        except (httpcore2.NetworkError, httpcore2.TimeoutException, httpcore2.ProtocolError, ValueError) as error:
            return True, f"{type(error).__name__}: {error}"[:300]
        return status != _GONE, "" if 200 <= status < 300 else f"answered {status}"

    def _settle(self, message: Message, may_repeat: bool, error: str) -> None:
        extra = {"job": message.job_id, "attempt": message.attempt, "error": error}
        if not error:
            logger.info("webhook delivered", extra=extra)
            self._ledger.outbox.mark_delivered(message)
        elif may_repeat and message.attempt <= len(WAITS_S):
            logger.warning("webhook not delivered; tried again later", extra=extra)
            self._ledger.outbox.postpone(message, wait_s=WAITS_S[message.attempt - 1], error=error)
        else:
            logger.error("webhook given up", extra=extra)
            self._ledger.outbox.mark_failed(message, error=error)
