"""The outbox of undelivered webhook messages. The script that ends a job adds its message in the same step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from shared.ledger import keys
from shared.ledger.session import Session, to_ms


@dataclass(frozen=True)
class WebhookMessage:
    """One message that is due; `attempt` is 1 the first time."""

    job_id: str
    url: str
    attempt: int


class Outbox:
    """The undelivered webhook messages of one Redis; any number of senders may share it."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def reserve_due(self, *, reserve_s: float, limit: int) -> Sequence[WebhookMessage]:
        """Return due messages, and reserve them for this sender for `reserve_s`."""
        # If the sender dies, its messages are due again when that time is over.
        # Redis replies with one flat list: three values for each message.
        flat = self._session.run("outbox_reserve", reserve_ms=to_ms(reserve_s), limit=limit)
        return [WebhookMessage(job, url, int(attempt)) for job, url, attempt in zip(*[iter(flat)] * 3, strict=True)]

    def mark_delivered(self, message: WebhookMessage) -> None:
        """Remove a message whose receiver has confirmed it."""
        self._record(message, "delivered")

    def postpone(self, message: WebhookMessage, *, wait_s: float, error: str) -> None:
        """Keep a message that could not be delivered; it is due again in `wait_s`."""
        self._record(message, "waiting", wait_s=wait_s, error=error)

    def mark_failed(self, message: WebhookMessage, *, error: str) -> None:
        """Remove a message that will not be sent again."""
        self._record(message, "failed", error=error)

    def count_undelivered(self) -> int:
        """Count the messages that are neither delivered nor failed."""
        with self._session.commands():
            return int(self._session.redis.zcard(keys.OUTBOX))

    def _record(
        self,
        message: WebhookMessage,
        state: Literal["delivered", "waiting", "failed"],
        *,
        wait_s: float = 0,
        error: str = "",
    ) -> None:
        self._session.run("outbox_record", job_id=message.job_id, state=state, wait_ms=to_ms(wait_s), error=error)
