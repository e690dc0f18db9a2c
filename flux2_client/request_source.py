"""Where `flux2 submit` takes its request from: a file, stdin, or the options that describe one."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flux2_client.composition import (
    compose_prompts,
    parse_lora,
    parse_seeds,
    parse_sigmas,
    parse_size,
    read_prompts,
)

_STDIN = "-"


@dataclass(frozen=True)
class Description:
    """A request as options describe it; None stands for an option that was not given.

    Attributes:
        sigmas: noise levels of every prompt, with commas between them.
        prompt_fields: fields that every prompt gets, besides its size, seed and sigmas.
        request_fields: fields of the request itself.
        entries: prompts of another source, which count if the options give none.
    """

    prompts: Sequence[str] | None
    prompts_file: Path | None
    loras: Sequence[str] | None
    seeds: str | None
    size: str | None
    sigmas: str | None
    prompt_fields: Mapping[str, Any]
    request_fields: Mapping[str, Any]
    entries: Sequence[Mapping[str, Any]] = ()

    @property
    def is_empty(self) -> bool:
        """Whether no option was given."""
        options = (self.prompts, self.prompts_file, self.loras, self.seeds, self.size, self.sigmas)
        values = [*options, *self.prompt_fields.values(), *self.request_fields.values()]
        return all(value is None for value in values)

    def compose(self) -> dict[str, Any]:
        """Return the request.

        Raises:
            ValueError: an option is unsound, or no prompt was given.
            OSError: the file of prompts cannot be read.
        """
        prompts = collect_prompts(self.prompts or (), self.prompts_file) or [dict(entry) for entry in self.entries]
        if not prompts:
            raise ValueError("nothing to render; give a request file, -p PROMPT or --prompts FILE")
        fields = {name: _text(value) for name, value in _given(self.prompt_fields).items()}
        # A script whose variable is empty: without its image, the prompt gives another picture.
        if empty := next((name for name, value in fields.items() if value == ""), None):
            raise ValueError(f"--{empty.replace('_', '-')} is empty; give an image, or leave the option out")
        if "ctrl_img" in fields:
            prompts = [_with_first_reference(prompt) for prompt in prompts]
        if self.size is not None:
            fields["width"], fields["height"] = parse_size(self.size)
        if self.sigmas is not None:
            if "sample_steps" in fields:
                raise ValueError("--steps and --sigmas both give the steps; leave one of them out")
            fields["sigmas"] = parse_sigmas(self.sigmas)
        seeds = parse_seeds(self.seeds) if self.seeds is not None else []
        return {
            "model": "flux2",
            "prompts": compose_prompts(prompts, seeds=seeds, fields=fields),
            "loras": [parse_lora(_text(lora)) for lora in self.loras or []],
            **{name: _text(value) for name, value in _given(self.request_fields).items()},
        }


def collect_prompts(texts: Sequence[str], file: Path | None) -> list[dict[str, Any]]:
    """Return the prompts of options: texts, then the lines of a file; `-` is stdin.

    Raises:
        ValueError: a text is not UTF-8, or a line of the file is unsound.
        OSError: the file cannot be read.
    """
    prompts: list[dict[str, Any]] = [{"prompt": _text(text)} for text in texts]
    return prompts if file is None else [*prompts, *read_prompts(_read_text(str(file)))]


def load_request(file: str | None, description: Description) -> dict[str, Any]:
    """Return the request of a file, or the one that is described; `-` is stdin.

    Raises:
        ValueError: both were given, or the request is unsound.
        OSError: a file cannot be read.
    """
    if file is None:
        return description.compose()
    if not description.is_empty:
        raise ValueError("a request file holds the whole request; leave out the options that describe one")
    try:
        request = json.loads(_read_text(file))
    except ValueError as error:
        raise ValueError(f"{file} is not JSON: {error}") from error
    if not isinstance(request, dict) or not isinstance(request.get("prompts"), list):
        raise ValueError(f'{file} holds no request: a JSON object with "model", "prompts" and "loras"')  # noqa: TRY004
    if not all(isinstance(prompt, dict) for prompt in request["prompts"]):
        raise ValueError(f'{file} has a prompt that is no JSON object; write {{"prompt": "a cat"}}')
    return request


def _read_text(file: str) -> str:
    try:
        data = sys.stdin.buffer.read() if file == _STDIN else Path(file).read_bytes()
        # Some editors of Windows begin a file with a byte order mark.
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not text in UTF-8: {error.reason} at byte {error.start}") from error


def _text(value: Any) -> Any:
    """Return the text of an option, which a terminal with a locale without UTF-8 gives in pieces."""
    if not isinstance(value, str):
        return value
    try:
        return os.fsencode(value).decode()
    except UnicodeError as error:
        raise ValueError(f"{value!r} is not text in UTF-8; set a locale with UTF-8, e.g. LC_ALL=C.UTF-8") from error


def _with_first_reference(prompt: Mapping[str, Any]) -> dict[str, Any]:
    """Return a prompt with its first reference under one of its two names, so that it wins over the option's."""
    return {"ctrl_img": prompt["ctrl_img_1"], **prompt} if prompt.get("ctrl_img_1") else dict(prompt)


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
