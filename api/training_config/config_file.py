"""Read the parts of an AI Toolkit config file, and name the key that is missing or has another type."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping
from typing import Any

import yaml

from api.training_config.untrusted_yaml import load_yaml
from shared.errors import ConfigRefused

# `[name]` may occur often in a file, so a long name would multiply its size. File names have at most 255 bytes.
_MAX_NAME_LENGTH = 255


def read_process(text: str) -> tuple[str, Mapping[str, Any]]:
    """Return the config's name and its first process, with `[name]` filled in.

    Raises:
        ConfigRefused: the text is not YAML or has no process.
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
    return name, expect_mapping(_fill_in_name(processes[0], name), "config.process[0]")


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


def _fill_in_name(value: Any, name: str) -> Any:
    """Replace `[name]` in every string below `value`, as the trainer does when it reads a config."""
    if isinstance(value, str):
        return value.replace("[name]", name)
    if isinstance(value, list):
        return [_fill_in_name(entry, name) for entry in value]
    if isinstance(value, dict):
        return {key: _fill_in_name(entry, name) for key, entry in value.items()}
    return value
