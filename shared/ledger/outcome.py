"""End an item with its outcome."""

from __future__ import annotations

from typing import Literal, TypeAlias

from shared.job import ItemError, ItemResult
from shared.ledger.session import Session
from shared.ledger.spec_parts import RESULT_COMMON

CommitAnswer: TypeAlias = Literal["committed", "repeated", "canceled", "stale"]


def end_item(session: Session, item_id: str, fence: int, *, outcome: ItemResult | ItemError | None) -> CommitAnswer:
    """End an item as succeeded (a result), failed (an error) or canceled (None); see `Ledger.commit`."""
    own, common = None, None
    if isinstance(outcome, ItemResult):
        # Almost no image has warnings, and a large job stores this text for each image.
        absent = {name for name in ("tokens", "warnings") if not getattr(outcome, name)}
        own = outcome.model_dump_json(exclude=RESULT_COMMON | absent)
        common = outcome.model_dump_json(include=RESULT_COMMON)
    elif outcome is not None:
        common = outcome.model_dump_json()
    answer: CommitAnswer = session.run(
        "commit",
        item_id=item_id,
        fence=fence,
        outcome="canceled" if outcome is None else "failed" if own is None else "succeeded",
        own_json=own,
        common_json=common,
    )
    return answer
