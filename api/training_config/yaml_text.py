"""YAML that strangers wrote: every failure is a YAML error, and anchors stand for no more than a process can hold.

PyYAML shares the node behind an anchor, so that a few hundred bytes may stand for any amount, or for themselves.
"""

from __future__ import annotations

import reprlib
from collections.abc import Iterable
from typing import Any

import yaml
from yaml.constructor import ConstructorError

# With every alias filled in. A training config has some hundred nodes and some thousand characters.
_MAX_SIZE = 1_000_000
_MAX_LEVELS = 100
# A float's range ends at 309 digits. Longer ones cost quadratic time, and Python refuses to print them.
_MAX_DIGITS = 100
_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")


def load(text: str) -> Any:
    """Read one document of plain values.

    Args:
        text: YAML or JSON.

    Raises:
        yaml.YAMLError: it is no YAML, has a value that cannot be read, nests more than 100 levels or within itself, or
            stands for more than a million nodes and characters. A `MarkedYAMLError` where the line is known.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except RecursionError as error:
        raise yaml.YAMLError(f"it nests more than {_MAX_LEVELS} levels") from error
    except (ValueError, OverflowError) as error:  # the scanner's own, for an escape that is no character
        raise yaml.YAMLError(str(error)) from error


class _Loader(yaml.SafeLoader):
    def construct_document(self, node: yaml.Node) -> Any:
        _measure(node, 0, {})
        return super().construct_document(node)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            if node.tag in _NUMBERS and len(node.value) > _MAX_DIGITS:
                raise ValueError(f"a number has at most {_MAX_DIGITS} characters")
            value = super().construct_object(node, deep)
            if isinstance(value, str):
                value.encode()  # an escaped surrogate is no character
        # What PyYAML lets out for `2024-13-45`, `!!timestamp x`, `!!int ""` and `!!bool x`.
        except (ArithmeticError, AttributeError, LookupError, ValueError) as error:
            kind = node.tag.rpartition(":")[2]
            raise _refused(f"{reprlib.repr(node.value)} cannot be read as {kind}", node) from error
        return value


def _measure(node: yaml.Node, level: int, known: dict[int, tuple[int, int]]) -> tuple[int, int]:
    """Return the nodes and characters, and the levels, that `node` stands for; each node is measured once.

    Raises:
        ConstructorError: too many of either; levels without end, if it holds itself.
    """
    if level > _MAX_LEVELS:
        raise _too_deep(node)
    if id(node) not in known:
        below = [_measure(child, level + 1, known) for child in _children(node)]
        own = len(node.value) if isinstance(node, yaml.ScalarNode) else 0
        known[id(node)] = 1 + own + sum(size for size, _ in below), 1 + max((levels for _, levels in below), default=0)
    size, levels = known[id(node)]
    if level + levels > _MAX_LEVELS:
        raise _too_deep(node)
    if size > _MAX_SIZE:
        raise _refused(f"with its aliases filled in it has more than {_MAX_SIZE} nodes and characters", node)
    return size, levels


def _children(node: yaml.Node) -> Iterable[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return (child for pair in node.value for child in pair)
    return node.value if isinstance(node, yaml.SequenceNode) else ()


def _too_deep(node: yaml.Node) -> ConstructorError:
    return _refused(f"it nests more than {_MAX_LEVELS} levels, or within itself", node)


def _refused(problem: str, node: yaml.Node) -> ConstructorError:
    return ConstructorError(None, None, problem, node.start_mark)
