"""Name the request, the item and the slot in each log line about them, in whatever thread it is written.

The names are kept in context variables: `shared.logs` adds them to every line. A line's own values come first.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from contextvars import copy_context
from typing import ParamSpec, TypeVar

from structlog.contextvars import bind_contextvars, bound_contextvars, unbind_contextvars

from shared.ledger.claim import split_item_id

P = ParamSpec("P")
T = TypeVar("T")

_REQUEST, _SWEEP, _ITEM, _SLOT, _TRACE = "request_id", "sweep_id", "item", "slot", "trace_id"


def slot_context(slot: str) -> AbstractContextManager[None]:
    """Name a slot in the lines of a block."""
    return bound_contextvars(**{_SLOT: slot})


def item_context(item_id: str, *, traceparent: str = "") -> AbstractContextManager[None]:
    """Name an item, the request that it belongs to, and their trace in the lines of a block."""
    return bound_contextvars(**{_REQUEST: split_item_id(item_id)[0], _ITEM: item_id}, **_trace(traceparent))


def request_context(request_id: str, *, traceparent: str = "") -> AbstractContextManager[None]:
    """Name a request and its trace in the lines of a block; what is empty is not named."""
    return bound_contextvars(**({_REQUEST: request_id} if request_id else {}), **_trace(traceparent))


def name_request(*request_ids: str) -> None:
    """Name requests in the lines that follow in this task or thread: their ids, which the block did not know."""
    bind_contextvars(**{_REQUEST: ",".join(request_ids)})


def name_sweep(sweep_id: str) -> None:
    """Name a sweep in the lines that follow in this task, and not its jobs: Docker cuts lines of more than 16 kB."""
    bind_contextvars(**{_SWEEP: sweep_id})


def leave_request() -> None:
    """Name neither request nor sweep in the lines that follow in this task: a new call may have inherited them."""
    unbind_contextvars(_REQUEST, _SWEEP)


def leave_item() -> None:
    """Name no item and no request in the lines that follow in this thread, which works for another item now."""
    unbind_contextvars(_REQUEST, _ITEM, _TRACE)


def _trace(traceparent: str) -> dict[str, str]:
    # W3C: version, id of the trace, id of the span, flags.
    return {_TRACE: traceparent.split("-")[1]} if traceparent.count("-") == 3 else {}


def in_this_context(work: Callable[P, T]) -> Callable[P, T]:
    """Return a function whose lines, in another thread, have the names of this moment; one thread may call it."""
    context = copy_context()

    def run(*arguments: P.args, **options: P.kwargs) -> T:
        return context.run(work, *arguments, **options)

    return run
