"""The rules for prompts that the API and the worker share."""

from __future__ import annotations

import re
from typing import NamedTuple

from shared.errors import InvalidRequest

#: Longest prompt in characters, both as written and with its trigger words filled in.
MAX_TEXT = 10_000

#: Number of tokens that the models read of a prompt, together with its chat template.
MAX_TOKENS = 512

IMAGE_TOKEN = "[IMG]"
_QUOTED_CHARS = 60

# A dash in running text, as in `a fox -- in snow` or `well--known`, is no flag.
_FLAG = re.compile(r"(?:^|(?<=\s))--([A-Za-z][\w-]*)")
#: The flags of AI Toolkit's sample prompts that have an effect on FLUX.2, with the request's fields for them.
TRAINER_FLAGS = {
    "w": "width",
    "h": "height",
    "d": "seed",
    "seed": "seed",
    "s": "sample_steps",
    "steps": "sample_steps",
    "l": "guidance_scale",
    "cfg": "guidance_scale",
    "m": "network_multiplier",
    "network_multiplier": "network_multiplier",
    "n": "neg",
}
# With spellings that people expect.
_FLAG_FIELDS = {**TRAINER_FLAGS, "width": "width", "height": "height"}


class PromptFlags(NamedTuple):
    """The flags at the end of a prompt.

    Attributes:
        text: the prompt from the first flag on, shortened.
        fields: fields of a request that have the effect of the flags.
    """

    text: str
    fields: tuple[str, ...]

    @property
    def advice(self) -> str:
        """The end of a sentence that says which fields to use instead."""
        return f", and set {', '.join(self.fields)}" if self.fields else ""


def find_flags(prompt: str) -> PromptFlags | None:
    """Return the flags, such as `--seed 7`, that AI Toolkit's trainer would cut from a sample prompt, or None."""
    found = list(_FLAG.finditer(prompt))
    if not found:
        return None
    fields = dict.fromkeys(_FLAG_FIELDS[flag[1]] for flag in found if flag[1] in _FLAG_FIELDS)
    return PromptFlags(_shorten(prompt[found[0].start() :].strip()), tuple(fields))


def check_prompt(prompt: str, *, field: str = "prompt") -> None:
    """Refuse a prompt that still contains an image token after one pass of removal.

    Args:
        field: JSON path of the prompt in the request, for the error.

    Raises:
        InvalidRequest: the prompt contains a nested token, such as `[IM[IMG]G]`.
    """
    # The trainer removes the token once, and its processor crashes on a remaining one. So no preview of such a prompt
    # exists that an image could equal.
    if IMAGE_TOKEN in prompt.replace(IMAGE_TOKEN, ""):
        raise InvalidRequest(
            f"the prompt still contains {IMAGE_TOKEN} after it was removed once; remove every {IMAGE_TOKEN}",
            field=field,
        )


def cut_warning(name: str, tokens: int, unused: str | None) -> str:
    """Describe a prompt of which the model reads only the first tokens.

    Args:
        name: `prompt` or `negative prompt`.
        unused: the end of the prompt, which the model does not read; empty if only the template's end was cut, None if
            it is unknown.
    """
    counted = (
        f"the {name} has {tokens} tokens with the model's chat template, and the model reads the first {MAX_TOKENS}"
    )
    if unused is None:
        return f"{counted}: its end has no effect on the image; shorten the {name}"
    if not unused:
        return f"{counted}: they hold the whole {name}, but not the end of the template; shorten the {name} a little"
    return f"{counted}: its end has no effect on the image, from {_shorten(unused)!r} on; shorten the {name}"


def _shorten(text: str) -> str:
    return text if len(text) <= _QUOTED_CHARS else f"{text[:_QUOTED_CHARS]}..."
