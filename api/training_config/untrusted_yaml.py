"""Read YAML that strangers wrote: every failure is a YAML error, and the size of the result is bounded."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable
from typing import Any

import yaml
from yaml.constructor import ConstructorError

# Nodes and characters, with every alias filled in. A training config has some hundred nodes and some thousand
# characters.
_MAX_SIZE = 1_000_000
_MAX_LEVELS = 100
# A float's range ends at 309 digits. Longer integers take quadratic time to read, and Python refuses to print them.
_MAX_DIGITS = 100
_NUMBER_TAGS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")


def load_yaml(text: str) -> Any:
    """Read one document of plain values.

    Args:
        text: YAML or JSON.

    Raises:
        yaml.YAMLError: the text is not YAML, has a value that cannot be read, nests more than 100 levels or within
            itself, or expands to more than a million nodes and characters. It is a `MarkedYAMLError` if the line is
            known.
    """
    try:
        return yaml.load(text, Loader=_BoundedLoader)
    except RecursionError as error:
        raise yaml.YAMLError(f"it nests more than {_MAX_LEVELS} levels") from error
    except (ValueError, OverflowError) as error:
        # PyYAML's scanner raises these for an escape that is not a character.
        raise yaml.YAMLError(str(error)) from error


class _BoundedLoader(yaml.SafeLoader):
    def construct_document(self, node: yaml.Node) -> Any:
        # Before any value is built. PyYAML shares the node of an anchor, so a few hundred bytes of nested aliases can
        # expand to gigabytes, or to a document that contains itself.
        _measure(node, 0, {})
        return super().construct_document(node)

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
            raise _refusal(f"{reprlib.repr(node.value)} cannot be read as {kind}", node) from error
        return value


def _measure(node: yaml.Node, level: int, known: dict[int, tuple[int, int]]) -> tuple[int, int]:
    """Return the size (nodes and characters) and the levels of `node` with its aliases filled in.

    Args:
        known: results by node identity, so that each node is measured only once, even with many aliases.

    Raises:
        ConstructorError: either exceeds its limit; the levels always do if the node contains itself.
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
        raise _refusal(f"with its aliases filled in it has more than {_MAX_SIZE} nodes and characters", node)
    return size, levels


def _children(node: yaml.Node) -> Iterable[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return (child for pair in node.value for child in pair)
    return node.value if isinstance(node, yaml.SequenceNode) else ()


def _too_deep(node: yaml.Node) -> ConstructorError:
    return _refusal(f"it nests more than {_MAX_LEVELS} levels, or within itself", node)


def _refusal(problem: str, node: yaml.Node) -> ConstructorError:
    return ConstructorError(None, None, problem, node.start_mark)
