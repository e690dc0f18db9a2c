"""Messages about ended jobs that are still to be sent: put there by the same step that ends a job."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from shared.ledger import keys
from shared.ledger.session import Session, ms


@dataclass(frozen=True)
class Message:
    """One message whose time has come; `attempt` is 1 the first time."""

    job_id: str
    url: str
    attempt: int


class Outbox(Session):
    """The outbox of one Redis; any number of senders may take from it at once."""

    def take_messages(self, *, hold_s: float, limit: int) -> Sequence[Message]:
        """Take what is due; a sender that dies leaves it to be taken again after `hold_s`."""
        flat = self._run("outbox_take", ms(hold_s), limit)
        return [Message(job, url, int(attempt)) for job, url, attempt in zip(*[iter(flat)] * 3, strict=True)]

    def settle_message(
        self,
        message: Message,
        state: Literal["delivered", "waiting", "failed"],
        *,
        again_s: float = 0.0,
        error: str = "",
    ) -> None:
        """Say what became of a message; one that waits is due again in `again_s`."""
        self._run("outbox_settle", message.job_id, state, ms(again_s), error)

    def unsent(self) -> int:
        """Messages that are not delivered yet."""
        with self._calls():
            return int(self.redis.zcard(keys.OUTBOX))
