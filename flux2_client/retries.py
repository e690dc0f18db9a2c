"""Repeat a call of an API that does not answer for a while."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TypeVar

from flux2_client.steps import Pause, Steps
from shared.errors import ApiError

T = TypeVar("T")

# Each wait is random below a bound that doubles, so that clients do not return in step.
_FIRST_WAIT_S = 0.5
_LONGEST_WAIT_S = 30.0


def repeat_call(
    call: Callable[[], Steps[T]], *, deadline_s: float, on_failure: Callable[[ApiError], None] | None = None
) -> Steps[T]:
    """Make a call until it succeeds or fails for good; return its value.

    Args:
        deadline_s: time of the monotonic clock after which no attempt begins.
        on_failure: called before each repeat; an exception that it raises ends the repeats.

    Raises:
        ApiError: the call's last error, which another attempt cannot change or the deadline does not allow.
    """
    bound_s = _FIRST_WAIT_S
    while True:
        try:
            return (yield from call())
        except ApiError as error:
            left_s = deadline_s - time.monotonic()
            if not error.retryable or left_s <= 0:
                raise
            if on_failure is not None:
                on_failure(error)
            pause_s = _pause_s(error, bound_s)
        yield Pause(min(pause_s, left_s))
        bound_s = min(2 * bound_s, _LONGEST_WAIT_S)


def _pause_s(error: ApiError, bound_s: float) -> float:
    if error.retry_after_s is None:
        return random.uniform(bound_s / 2, bound_s)
    # As long as the server asks for, and a little more, so that its clients do not all return at the same moment.
    return error.retry_after_s + random.uniform(0.0, _FIRST_WAIT_S)
