"""Compose requests from the options of `flux2 submit`, and split what is larger than the API takes."""

from __future__ import annotations

import json
import math
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, TypeVar

from flux2_client.models import Limits
from shared.resolve import MAX_RANDOM_SEED

NumberT = TypeVar("NumberT", int, float)

#: Images that one command may ask for: `--seed 1..1000000000` is a mistake.
MAX_IMAGES = 100_000

#: The fields of a prompt that give reference images.
REFERENCE_FIELDS: Final = ("ctrl_img", "ctrl_img_1", "ctrl_img_2", "ctrl_img_3")

# Either gives the number of denoising steps.
_SCHEDULE_FIELDS: Final = frozenset({"sample_steps", "sigmas"})

# Of the fields of a request without its prompts, and of its adapters.
_VALUES_OF_A_REQUEST: Final = 1000

_RANGE = re.compile(r"(-?\d+)\.\.(-?\d+)")
_SIZE = re.compile(r"(\d+)(?:x(\d+))?")


def parse_seeds(text: str) -> list[int]:
    """Return the seeds of e.g. `1..8`, `1,2,3` or `1..3,7`.

    Raises:
        ValueError: the text holds something else, or too many seeds.
    """
    seeds: list[int] = []
    for part in text.split(","):
        match = _RANGE.fullmatch(part.strip())
        first, last = (int(match[1]), int(match[2])) if match else (_integer(part), _integer(part))
        if last < first:
            raise ValueError(f"{part} counts down; write {last}..{first}")
        if last - first + len(seeds) >= MAX_IMAGES:
            raise ValueError(f"{text} has more than {MAX_IMAGES:,} seeds")
        seeds.extend(range(first, last + 1))
    return seeds


def parse_size(text: str) -> tuple[int, int]:
    """Return width and height of `WxH` or of the side `N` of a square.

    Raises:
        ValueError: the text is neither.
    """
    match = _SIZE.fullmatch(text.strip().lower())
    if not match:
        raise ValueError(f"{text!r} is not a size; write WIDTHxHEIGHT, e.g. 1024x768, or one number for a square")
    return int(match[1]), int(match[2] or match[1])


def parse_numbers(text: str, kind: type[NumberT]) -> list[NumberT]:
    """Return the numbers of e.g. `0.6,0.8,1`.

    Raises:
        ValueError: the text holds something else.
    """
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError:
        example = "20,25" if kind is int else "0.6,0.8,1"
        raise ValueError(f"{text!r} is not a list of numbers; write e.g. {example}") from None


def parse_lora(text: str) -> dict[str, Any]:
    """Return the request's entry of `PATH` or `PATH@MULTIPLIER`."""
    path, at, multiplier = text.rpartition("@")
    try:
        return {"path": path, "network_multiplier": float(multiplier)} if at and path else {"path": text}
    except ValueError:
        # A file may have an @ in its name.
        return {"path": text}


def parse_sigmas(text: str) -> list[float]:
    """Return the noise levels of e.g. `1,0.75,0.5,0.25`.

    Raises:
        ValueError: the text holds something else.
    """
    try:
        return parse_numbers(text, float)
    except ValueError:
        raise ValueError(f"{text!r} is not a list of noise levels; write e.g. 1,0.75,0.5,0.25") from None


def read_prompts(text: str) -> list[dict[str, Any]]:
    """Return the prompts of a file: one on each line, as text or as a JSON object with a prompt's fields.

    Raises:
        ValueError: a line begins like JSON but is not an object with a prompt.
    """
    prompts: list[dict[str, Any]] = []
    # Other characters at which `splitlines` breaks may be part of a prompt.
    for number, line in enumerate(text.split("\n"), start=1):
        line = line.strip()
        if not line:
            continue
        if not line.startswith("{"):
            prompts.append({"prompt": line})
            continue
        try:
            entry = json.loads(line)
        except ValueError as error:
            raise ValueError(f"line {number} is not JSON: {error}") from error
        if "prompt" not in entry:
            raise ValueError(f'line {number} has no "prompt"')
        prompts.append(entry)
    return prompts


def compose_prompts(
    prompts: Sequence[Mapping[str, Any]], *, seeds: Sequence[int], fields: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Return one entry for each prompt and seed; a prompt's own fields win over `fields` and `seeds`.

    Raises:
        ValueError: there are more than `MAX_IMAGES`.
    """
    if len(prompts) * max(1, len(seeds)) > MAX_IMAGES:
        raise ValueError(f"{len(prompts):,} prompts with {len(seeds):,} seeds are more than {MAX_IMAGES:,} images")
    return [
        {**_without_schedule(fields, prompt), **seed, **prompt}
        for prompt in prompts
        for seed in ([{}] if "seed" in prompt or not seeds else [{"seed": seed} for seed in seeds])
    ]


def fill_seeds(request: Mapping[str, Any], *, first: int) -> dict[str, Any]:
    """Return the request with the seeds that the API would choose: `first` plus the index of each prompt."""
    # A prompt may have `"seed": null`, for which the API chooses too.
    seeds = [prompt.get("seed") for prompt in request["prompts"]]
    prompts = [
        {**prompt, "seed": first + index if seed is None else seed}
        for index, (prompt, seed) in enumerate(zip(request["prompts"], seeds, strict=True))
    ]
    return {**request, "prompts": prompts}


def draw_seeds(request: Mapping[str, Any]) -> dict[str, Any]:
    """Return the request with a drawn seed for each -1, for which the API would draw another one at each submit."""
    prompts = [
        {**prompt, "seed": secrets.randbelow(MAX_RANDOM_SEED)} if prompt.get("seed") == -1 else prompt
        for prompt in request["prompts"]
    ]
    return {**request, "prompts": prompts}


def split_request(request: Mapping[str, Any], limits: Limits) -> Iterator[dict[str, Any]]:
    """Yield requests that the API takes: the same but for their prompts, which keep their order.

    The API chooses a prompt's default seed by its place in the request; `fill_seeds` makes it independent of the split.
    """
    rest = {name: value for name, value in request.items() if name != "prompts"}
    # A trigger word can be longer than `[trigger]`, and the bound also counts the prompts with it filled in.
    room = limits.max_body_bytes // 2 - _size(rest)
    batch: list[Any] = []
    used = values = 0
    images: set[str] = set()
    most_values = math.inf if limits.max_values is None else limits.max_values - _VALUES_OF_A_REQUEST
    for prompt in request["prompts"]:
        size, more = _size(prompt) + 1, set(reference_texts(prompt))
        own_values = len(prompt) + len(prompt.get("sigmas") or ())
        is_full = len(batch) == limits.max_prompts or len(images | more) > limits.max_reference_images
        if batch and (is_full or used + size > room or values + own_values > most_values):
            yield {**rest, "prompts": batch}
            batch, used, values, images = [], 0, 0, set()
        batch.append(prompt)
        used += size
        values += own_values
        images |= more
    yield {**rest, "prompts": batch}


def reference_texts(prompt: Mapping[str, Any]) -> list[str]:
    """Return the texts of a prompt that give reference images."""
    # The API refuses other values, and an empty text gives no image.
    return [text for name in REFERENCE_FIELDS if isinstance(text := prompt.get(name), str) and text]


def _without_schedule(fields: Mapping[str, Any], prompt: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the fields without those that a prompt replaces under the other name: the API takes one of the two."""
    if _SCHEDULE_FIELDS.isdisjoint(prompt):
        return fields
    return {name: value for name, value in fields.items() if name not in _SCHEDULE_FIELDS}


def _size(value: Any) -> int:
    return len(json.dumps(value).encode())


def _integer(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{text!r} is not a seed; write e.g. 7, 1..8 or 1,2,3") from None
