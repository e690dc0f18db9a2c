"""Bound the texts of a request with their trigger words filled in, before any of these texts exists.

A trigger word of 10 kB that a thousand short prompts name turns 65 kB of request into 40 MB of texts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate

from shared.catalog import Model, find_model
from shared.errors import InvalidRequest
from shared.request import InferenceRequest
from shared.resolve import TRIGGER


def check_resolved_size(
    requests: Sequence[InferenceRequest], *, max_bytes: int, field: str | None = None, copies: int = 1
) -> None:
    """Refuse the requests of one call if their resolved prompts and negative prompts are too large together.

    Args:
        max_bytes: most bytes of UTF-8.
        copies: number of images that each prompt gives.
        field: JSON path of these texts in the call, for the error; None names the prompt that passes the bound.

    Raises:
        InvalidRequest: names the size and the bound.
        ModelNotFound: see `find_model`.
    """
    sizes = [copies * size for request in requests for size in _resolved_bytes(request, find_model(request.model))]
    check_sizes(sizes, max_bytes=max_bytes, field=field)


def check_sizes(sizes: Sequence[int], *, max_bytes: int, field: str | None = None) -> None:
    """Refuse prompts with these resolved sizes as `check_resolved_size` does.

    Raises:
        InvalidRequest: names the size and the bound.
    """
    if (total := sum(sizes)) <= max_bytes:
        return
    first_over = next(index for index, size in enumerate(accumulate(sizes)) if size > max_bytes)
    raise InvalidRequest(
        f"the prompts have {total} bytes with their trigger words filled in; use at most {max_bytes} in one call: "
        "shorten the trigger word, or send fewer prompts at once",
        field=field or f"prompts[{first_over}].prompt",
    )


def filled_bytes(text: str, placeholder: str, value: str | None) -> int:
    """Return the bytes of UTF-8 that a text has once `value` replaces the placeholder; None leaves it as written."""
    growth = 0 if value is None else _utf8_bytes(value) - _utf8_bytes(placeholder)
    return _utf8_bytes(text) + text.count(placeholder) * growth


def _resolved_bytes(request: InferenceRequest, model: Model) -> Iterator[int]:
    """Yield the size of each prompt's resolved texts."""
    for prompt in request.prompts:
        neg = _utf8_bytes(prompt.neg or "") if model.uses_negative_prompt else 0
        # An empty trigger word replaces nothing.
        yield neg + filled_bytes(prompt.prompt, TRIGGER, prompt.trigger_word or request.trigger_word or None)


def _utf8_bytes(text: str) -> int:
    # JSON may escape half of a surrogate pair; a later step refuses it.
    return len(text.encode("utf-8", "surrogatepass"))
