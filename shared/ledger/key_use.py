"""What one API key may have queued and may submit in a day; `accept.lua` counts it in the step that stores its jobs."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Final

from shared.errors import AccessRefused, KeyForbids, KeyLimitReached

# Seconds until a queue of few images has probably moved.
_QUEUE_RETRY_S: Final = 5
_WHAT: Final = {
    "queued_items": "images waiting",
    "items_per_day": "images in a day (UTC)",
    "pixel_steps_per_day": "megapixel-steps in a day (UTC)",
}


@dataclass(frozen=True)
class KeyUse:
    """The limits of a key by amount; None sets none.

    Attributes:
        queued_items: items of the key that may wait for a worker.
        pixel_steps_per_day: the sum of width, height and steps multiplied, over the items of a day.
    """

    key_id: str
    queued_items: int | None = None
    items_per_day: int | None = None
    pixel_steps_per_day: int | None = None

    def arguments(self) -> dict[str, Any]:
        """Return the limits as `accept.lua` reads them."""
        fields = asdict(self)
        return {"id": fields.pop("key_id"), **{name: value for name, value in fields.items() if value is not None}}

    def refusal(
        self, name: str, *, used: int, asked: int, left_ms: int, room_after_s: int | None = None
    ) -> AccessRefused:
        """Return the error of a call that would exceed a limit.

        Args:
            left_ms: time until the day ends.
            room_after_s: time until fewer items of the key wait; None if it is unknown.
        """
        limit = asdict(self)[name]
        unit = 1e6 if name == "pixel_steps_per_day" else 1
        wanted, had, most = (f"{amount / unit:.12g}" for amount in (asked, used, limit))
        limited = f"the key {self.key_id} may have {most} {_WHAT[name]}"
        if asked > limit:
            return KeyForbids(
                f"{limited}, and {wanted} were asked for at once; ask for fewer, smaller or faster images"
            )
        is_queue = name == "queued_items"
        retry_after_s = (room_after_s or _QUEUE_RETRY_S) if is_queue else math.ceil(left_ms / 1000)
        return KeyLimitReached(
            f"{limited}; it has {had}, and {wanted} more were asked for. Try again in {retry_after_s} s, or ask for "
            "less",
            retry_after_s=retry_after_s,
        )
