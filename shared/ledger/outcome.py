"""End an item with its outcome, and count what its last attempt used."""

from __future__ import annotations

from typing import Literal, TypeAlias

from shared.job import ItemError, ItemResult, ItemSpec
from shared.ledger.render_times import measure
from shared.ledger.session import Session
from shared.ledger.spec_parts import RESULT_COMMON
from shared.ledger.usage_rows import name_adapters, pixel_steps, usage_ttl_s
from shared.settings import QueueSettings

CommitAnswer: TypeAlias = Literal["committed", "repeated", "canceled", "stale"]


def end_item(
    session: Session,
    settings: QueueSettings,
    item_id: str,
    fence: int,
    *,
    outcome: ItemResult | ItemError | None,
    gpu_s: float | None = None,
    spec: ItemSpec | None = None,
) -> CommitAnswer:
    """End an item as succeeded (a result), failed (an error) or canceled (None); see `Ledger.commit`.

    Args:
        spec: None if it cannot be read.
    """
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
        gpu_ms=None if gpu_s is None else round(1000 * gpu_s),
        pixel_steps=None if spec is None else pixel_steps(spec),
        adapters=None if spec is None else name_adapters(spec.adapters),
        times=measure(spec, outcome) if spec is not None and isinstance(outcome, ItemResult) else None,
        usage_ttl_s=usage_ttl_s(settings),
    )
    return answer
