"""Refuse requests that the limits of the caller's key never allow; `accept.lua` counts the amounts."""

from __future__ import annotations

from collections.abc import Sequence

from api.doors.caller import Caller
from shared.catalog import Model
from shared.errors import KeyForbids
from shared.job import Engine, ItemSpec
from shared.ledger.key_use import KeyUse


def check_kind(caller: Caller, model: Model, engine: Engine) -> None:
    """Raise `KeyForbids` for a model or an engine that the key does not allow."""
    for field, value, allowed in (("model", model.id, caller.limits.models), ("engine", engine, caller.limits.engines)):
        if allowed and value not in allowed:
            raise KeyForbids(
                f"the key {caller.key_id} does not allow the {field} {value!r}; it allows {', '.join(allowed)}",
                field=field,
            )


def check_sizes(caller: Caller, items: Sequence[ItemSpec]) -> None:
    """Raise `KeyForbids` for an image that is larger, or has more steps, than the key allows."""
    max_pixels, max_steps = caller.limits.max_pixels, caller.limits.max_steps
    for index, item in enumerate(items):
        if max_pixels is not None and item.width * item.height > max_pixels:
            raise KeyForbids(
                f"the key {caller.key_id} allows images of {caller.limits.max_megapixels:g} megapixels, and "
                f"{item.width}x{item.height} are {item.width * item.height / 1e6:.2f}; ask for a smaller one",
                field=f"prompts[{index}].width",
            )
        if max_steps is not None and item.num_inference_steps > max_steps:
            raise KeyForbids(
                f"the key {caller.key_id} allows {max_steps} steps, and {item.num_inference_steps} were asked for",
                field=f"prompts[{index}].{item.steps_field}",
            )


def key_use(caller: Caller) -> KeyUse | None:
    """Return what the ledger counts for the caller's key; None if its amounts have no limit."""
    limits = caller.limits
    if not caller.key_id or not limits.counts:
        return None
    return KeyUse(
        key_id=caller.key_id,
        queued_items=limits.queued_items,
        items_per_day=limits.items_per_day,
        pixel_steps_per_day=limits.pixel_steps_per_day,
    )
