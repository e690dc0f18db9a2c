"""How commands that follow jobs behave while the API is away: they wait, and say so once."""

from __future__ import annotations

import time
from collections.abc import Callable

from shared.errors import ApiError

#: A day: an API may be away for as long as a command waits for its jobs, and a queue may be long.
PATIENCE_S = 86_400.0

# Longer than the waits between attempts: an error that comes back later belongs to another outage.
_SAME_OUTAGE_S = 120.0


class RetryMessages:
    """Says why a call is repeated: the `on_failure` of a client.

    Args:
        say: prints a line of text.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        # When each error last came.
        self._came_s: dict[int | str, float] = {}

    def __call__(self, error: ApiError) -> None:
        # An outage gives the same error at each attempt, and an answer with the same status for each image or with
        # other numbers.
        kind = error.status or str(error)
        now_s = time.monotonic()
        if now_s - self._came_s.get(kind, -_SAME_OUTAGE_S) >= _SAME_OUTAGE_S:
            self._say(f"trying again: {error}")
        self._came_s[kind] = now_s
