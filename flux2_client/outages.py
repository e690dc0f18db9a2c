"""How commands that follow jobs behave while the API is away: they wait, and say so once."""

from __future__ import annotations

from collections.abc import Callable

from shared.errors import ApiError

#: A day: an API may be away for as long as a command waits for its jobs, and a queue may be long.
PATIENCE_S = 86_400.0


class RetryMessages:
    """Says why a call is repeated: the `on_failure` of a client.

    Args:
        say: prints a line of text.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._last = ""

    def __call__(self, error: ApiError) -> None:
        # An outage gives the same error at each attempt.
        if str(error) != self._last:
            self._last = str(error)
            self._say(f"trying again: {error}")
