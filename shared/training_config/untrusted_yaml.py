"""Read YAML that strangers wrote: every failure is a YAML error, and the time and size of the result are bounded."""

from __future__ import annotations

import re
import reprlib
from typing import Any

import yaml
from yaml.constructor import ConstructorError, SafeConstructor

from shared.training_config.bounded_composer import BoundedComposer

# A float's range ends at 309 digits. Longer integers take quadratic time to read, and Python refuses to print them.
_MAX_DIGITS = 100
_NUMBER_TAGS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
# PyYAML's own parser takes 0.3 s for 200,000 flat characters of lists, and 5 s if they are 80 levels deep.
_MAX_PYTHON_TEXT = 30_000
# A character beyond 16 bits in JSON, such as an emoji. The backslash that begins it is not escaped itself.
_SURROGATE_PAIR = re.compile(r"(?<!\\)((?:\\\\)*)\\u(d[89ab][0-9a-f]{2})\\u(d[c-f][0-9a-f]{2})", re.IGNORECASE)


def load_yaml(text: str) -> Any:
    """Read one document of plain values.

    Args:
        text: YAML or JSON.

    Raises:
        yaml.YAMLError: the text is not YAML, has a value that cannot be read, or exceeds a limit of
            `bounded_composer`. It is a `MarkedYAMLError` if the line is known.
    """
    # JSON escapes such a character as two surrogates, which YAML refuses. JSON has escapes in double quotes only, where
    # YAML's own escape works.
    if text.lstrip().startswith("{"):
        text = _SURROGATE_PAIR.sub(_join_pair, text)
    # PyYAML's wheels contain libyaml; an installation from source may lack it.
    if yaml.__with_libyaml__:
        return _load(text, _LibyamlLoader)
    if len(text) > _MAX_PYTHON_TEXT:
        raise yaml.YAMLError(
            f"it has {len(text)} characters, and this API reads at most {_MAX_PYTHON_TEXT}, because its PyYAML lacks "
            "libyaml; shorten the file, or install PyYAML from a wheel"
        )
    return _load(text, _PythonLoader)


def _join_pair(match: re.Match[str]) -> str:
    high, low = (int(half, 16) for half in match.group(2, 3))
    return f"{match[1]}\\U{0x10000 + ((high & 0x3FF) << 10 | low & 0x3FF):08x}"


def _load(text: str, loader: Any) -> Any:
    try:
        return yaml.load(text, Loader=loader)
    except (ValueError, OverflowError) as error:
        # PyYAML raises these for text that has no encoding; its own scanner for an escape that is not a character.
        raise yaml.YAMLError(str(error)) from error


class _BoundedLoading(SafeConstructor):
    """The part of a loader that turns events into values, in place of PyYAML's."""

    def get_single_node(self) -> yaml.Node | None:
        return BoundedComposer(self).compose()

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            if node.tag in _NUMBER_TAGS and len(node.value) > _MAX_DIGITS:
                raise ValueError(f"a number has at most {_MAX_DIGITS} characters")
            value = super().construct_object(node, deep)
            if isinstance(value, str):
                # Raises for a lone surrogate, which an escape can write but no encoding can store.
                value.encode()
        # PyYAML raises these for `2024-13-45`, `!!timestamp x`, `!!int ""` and `!!bool x`.
        except (ArithmeticError, AttributeError, LookupError, ValueError) as error:
            kind = node.tag.rpartition(":")[2]
            problem = f"{reprlib.repr(node.value)} cannot be read as {kind}"
            raise ConstructorError(None, None, problem, node.start_mark) from error
        return value


class _PythonLoader(_BoundedLoading, yaml.SafeLoader):
    pass


class _LibyamlLoader(_BoundedLoading, getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    pass
