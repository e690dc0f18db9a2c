"""Read the parts of an AI Toolkit config file, and name the key that is missing or has another type."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping
from typing import Any

import yaml

from shared.errors import ConfigRefused
from shared.resolved_size import filled_bytes
from shared.training_config.untrusted_yaml import load_yaml

_NAME = "[name]"
# File names have at most 255 bytes.
_MAX_NAME_LENGTH = 255


def read_process(text: str, *, max_bytes: int) -> tuple[str, Mapping[str, Any]]:
    """Return the config's name and its first process, with `[name]` filled in.

    Args:
        max_bytes: most bytes of UTF-8 that all texts with a `[name]` may have together once it is filled in.

    Raises:
        ConfigRefused: the text is not YAML, has no process, or its name makes it too large.
    """
    config = expect_mapping(expect_mapping(_parse(text), "the file").get("config"), "config")
    name = config.get("name")
    if not isinstance(name, str) or not name:
        raise ConfigRefused("config.name is missing or not text")
    # A name with [trigger] in it would multiply the size twice: through `[name]`, then through `[trigger]`.
    if len(name) > _MAX_NAME_LENGTH or "[trigger]" in name:
        raise ConfigRefused(
            f"config.name is {reprlib.repr(name)}; use at most {_MAX_NAME_LENGTH} characters, and not [trigger]"
        )
    processes = config.get("process")
    if not isinstance(processes, list) or not processes:
        raise ConfigRefused("config.process is not a list of processes")
    process = expect_mapping(_NameFiller(name, max_bytes=max_bytes).fill(processes[0]), "config.process[0]")
    return name, process


def expect_mapping(value: object, where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ConfigRefused(f"{where} is missing or not a mapping")
    return value


def expect_list(value: object, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise ConfigRefused(f"{where} is {reprlib.repr(value)}, not a list")
    return value


def expect_text(value: object, where: str) -> str:
    if not isinstance(value, str):
        raise ConfigRefused(f"{where} is {reprlib.repr(value)}, not text")
    return value


def expect_number(value: Any, kind: type[int] | type[float], where: str) -> int | float:
    """Convert a value as Python's `int` and `float` do, text included; refuse infinities and NaN."""
    wanted = "a whole number" if kind is int else "a finite number"
    try:
        number = kind(value)
        is_finite = math.isfinite(number)
    except (TypeError, ValueError, OverflowError) as error:
        raise ConfigRefused(f"{where} is {reprlib.repr(value)}, not {wanted}") from error
    if not is_finite:
        raise ConfigRefused(f"{where} is {reprlib.repr(value)}, not {wanted}")
    return number


def _parse(text: str) -> Any:
    try:
        return load_yaml(text)
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigRefused(f"not YAML that can be read{line}: {str(error.problem)[:200]}") from error
    except yaml.YAMLError as error:
        raise ConfigRefused(f"not YAML that can be read: {' '.join(str(error).split())[:200]}") from error


class _NameFiller:
    """Replaces `[name]` in every text of a process, as the trainer does when it reads a config.

    A value that YAML aliases share is filled in once and stays shared: a copy for each alias would multiply its size.
    """

    def __init__(self, name: str, *, max_bytes: int) -> None:
        self._name = name
        self._max_bytes = max_bytes
        self._bytes = 0
        self._filled: dict[int, Any] = {}

    def fill(self, value: Any) -> Any:
        if not isinstance(value, str | list | dict):
            return value
        if id(value) not in self._filled:
            self._filled[id(value)] = self._fill_new(value)
        return self._filled[id(value)]

    def _fill_new(self, value: str | list[Any] | dict[Any, Any]) -> Any:
        if isinstance(value, list):
            return [self.fill(entry) for entry in value]
        if isinstance(value, dict):
            return {key: self.fill(entry) for key, entry in value.items()}
        return self._fill_text(value)

    def _fill_text(self, text: str) -> str:
        if _NAME not in text:
            return text
        self._bytes += filled_bytes(text, _NAME, self._name)
        if self._bytes > self._max_bytes:
            raise ConfigRefused(
                f"config.process[0] has more than {self._max_bytes} bytes of text with [name] filled in; shorten "
                "config.name, or use [name] less often"
            )
        return text.replace(_NAME, self._name)
