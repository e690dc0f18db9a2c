"""The outbox of undelivered webhook messages. The script that ends a job or an item adds its message in the same step.

Tenants take turns, and a host gets two messages at a time. The messages of one tenant to one host share a route. If the
host does not answer, the route is paused: its messages wait without spending their attempts.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, Self

from shared.ledger import keys
from shared.ledger.session import Session, to_ms

logger = logging.getLogger("flux2.ledger.outbox")

#: Age in seconds at which the messages of a host that never answered are given up; longer than all attempts take.
GIVE_UP_AFTER_S: Final = 3.5 * 86_400
# Each pause of a host is twice the one before. With the jitter, none is longer than the wait for the next attempt (5 s,
# 1 min, 5 min, ...), so a pause delays no message that is alone.
_FIRST_PAUSE_S: Final = 4.0
_LONGEST_PAUSE_S: Final = 240.0
_JITTER: Final = (0.75, 1.25)
# Each step puts up to 100 messages on their routes.
_MAX_STEPS: Final = 20


@dataclass(frozen=True)
class WebhookMessage:
    """One message that is due.

    Attributes:
        attempt: 1 the first time.
        index: the item that the message is about; None if it is about the end of the job.
    """

    job_id: str
    url: str
    attempt: int
    index: int | None = None

    @classmethod
    def of(cls, name: str, url: str, attempt: str) -> Self:
        """Build the message from the outbox's name for it: the id of the job, or `#` and that of the item."""
        if not name.startswith("#"):
            return cls(name, url, int(attempt))
        job_id, _, index = name[1:].rpartition(":")
        return cls(job_id, url, int(attempt), int(index))

    @property
    def name(self) -> str:
        return self.job_id if self.index is None else f"#{self.job_id}:{self.index}"


class Outbox:
    """The undelivered webhook messages of one Redis; any number of senders may share it."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def reserve_due(self, *, reserve_s: float, limit: int) -> Sequence[WebhookMessage]:
        """Return due messages, and reserve them for this sender for `reserve_s`.

        Call it about once a second, also without a free sender (`limit=0`): it puts due messages on their routes, and
        notices steps of Redis' clock, which would otherwise end reservations early or delay messages.

        Args:
            reserve_s: longer than an attempt may take; then the message is due again, in case the sender died.
            limit: number of free senders.
        """
        messages: list[WebhookMessage] = []
        for step in range(1, _MAX_STEPS + 1):
            needs_more, flat, given_up = self._session.run(
                "outbox_reserve",
                reserve_ms=to_ms(reserve_s),
                limit=limit - len(messages),
                give_up_ms=to_ms(GIVE_UP_AFTER_S),
                is_last_step=step == _MAX_STEPS,
            )
            # Redis replies with one flat list: three values for each message.
            messages += [WebhookMessage.of(name, url, n) for name, url, n in zip(*[iter(flat)] * 3, strict=True)]
            for name in given_up:
                about = {"item": name[1:]} if name.startswith("#") else {"request_id": name}
                logger.error("webhook given up: its host does not answer", extra=about)
            if not needs_more or (messages and len(messages) == limit):
                break
        return messages

    def mark_delivered(self, message: WebhookMessage) -> None:
        """Remove a message whose receiver has confirmed it."""
        self._record(message, "delivered", reached=True)

    def postpone(self, message: WebhookMessage, *, wait_s: float, error: str, reached: bool | None = None) -> None:
        """Keep a message that could not be delivered; it is due again in `wait_s`.

        Args:
            message: as it was reserved.
            wait_s: time until the next attempt; longer if the host is paused then.
            error: shown in the job's status.
            reached: whether the host answered; False pauses it, None if nothing was sent.
        """
        self._record(message, "waiting", wait_s=wait_s, error=error, reached=reached)

    def mark_failed(self, message: WebhookMessage, *, error: str, reached: bool | None = None) -> None:
        """Remove a message that will not be sent again; `reached` as in `postpone`."""
        self._record(message, "failed", error=error, reached=reached)

    def resend(self, job_id: str, *, tenant: str | None = None) -> Literal["queued", "unknown", "none", "waiting"]:
        """Make the message of an ended job due again, with all its attempts.

        Args:
            tenant: a job of another tenant is unknown to the caller; None for one that sees every job.

        Returns:
            `unknown` if there is no such job, `none` if no message is sent about its end, and `waiting` if it has not
            ended or its message is still being sent; nothing changes then.
        """
        answer: Literal["queued", "unknown", "none", "waiting"] = self._session.run(
            "outbox_resend", job_id=job_id, tenant=tenant
        )
        return answer

    def count_undelivered(self) -> int:
        """Count the messages that are neither delivered nor failed."""
        with self._session.commands():
            redis = self._session.redis
            return int(redis.zcard(keys.OUTBOX)) + int(redis.zcard(keys.ITEM_OUTBOX))

    def _record(
        self,
        message: WebhookMessage,
        state: Literal["delivered", "waiting", "failed"],
        *,
        wait_s: float = 0,
        error: str = "",
        reached: bool | None,
    ) -> None:
        self._session.run(
            "outbox_record",
            message=message.name,
            attempt=message.attempt,
            state=state,
            wait_ms=to_ms(wait_s),
            error=error,
            reached=reached,
            pause_ms=to_ms(_FIRST_PAUSE_S),
            longest_pause_ms=to_ms(_LONGEST_PAUSE_S),
            # Otherwise all API processes would try again at the same moment.
            jitter=random.uniform(*_JITTER),
        )
