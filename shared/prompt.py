"""The one rule about prompts that the API and the worker share."""

from __future__ import annotations

from shared.errors import InvalidRequest

_IMAGE_TOKEN = "[IMG]"


def check_prompt(prompt: str, *, field: str = "prompt") -> None:
    """Refuse a prompt that still holds an image token after the trainer's one pass of removal.

    The trainer cannot render it ("[IM[IMG]G]" crashes its processor), so there is no image it could be equal to.

    Raises:
        InvalidRequest: it does; `field` is its place in the request.
    """
    if _IMAGE_TOKEN in prompt.replace(_IMAGE_TOKEN, ""):
        raise InvalidRequest(f"the prompt still holds {_IMAGE_TOKEN} after it was removed once", field=field)
