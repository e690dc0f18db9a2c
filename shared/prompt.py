"""Check prompts by the rule that the API and the worker share."""

from __future__ import annotations

from shared.errors import InvalidRequest

_IMAGE_TOKEN = "[IMG]"


def check_prompt(prompt: str, *, field: str = "prompt") -> None:
    """Refuse a prompt that still contains an image token after one pass of removal.

    Args:
        field: JSON path of the prompt in the request, for the error.

    Raises:
        InvalidRequest: the prompt contains a nested token, such as `[IM[IMG]G]`.
    """
    # The trainer removes the token once, and its processor crashes on a remaining one. So no preview of such a prompt
    # exists that an image could equal.
    if _IMAGE_TOKEN in prompt.replace(_IMAGE_TOKEN, ""):
        raise InvalidRequest(
            f"the prompt still contains {_IMAGE_TOKEN} after it was removed once; remove every {_IMAGE_TOKEN}",
            field=field,
        )
