"""Compose the nodes of one YAML document from a parser's events, and stop as soon as the document exceeds a limit.

PyYAML's own composers call themselves at each level and measure nothing. The one for libyaml overflows the C stack at
some 50,000 levels, which kills the process.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import yaml
from yaml.composer import ComposerError

#: Nodes as written. A config of 1,000 samples with every field has 17,000; each takes 1.2 kB and 10 us.
MAX_NODES = 50_000
#: Nodes and characters, with every alias filled in. A config has some hundred nodes and some thousand characters.
MAX_SIZE = 1_000_000
MAX_LEVELS = 100


@dataclass(frozen=True)
class _Part:
    """A complete node; `size` and `levels` are those of the whole tree below it, itself included."""

    node: yaml.Node
    size: int
    levels: int


@dataclass
class _OpenCollection:
    """A list or mapping whose end has not been read.

    Attributes:
        size_before: size of the document before this collection.
        levels: levels of its deepest complete child.
        key: in a mapping, the key whose value comes next.
    """

    node: yaml.CollectionNode
    anchor: str | None
    size_before: int
    levels: int = 0
    key: yaml.Node | None = None


class BoundedComposer:
    """Composes one document; `parser` is a PyYAML loader, of which only events and tag resolution are used.

    A node's size is known when it ends, so an alias adds its size without being followed, and a document that
    contains itself is recognised at the alias.
    """

    def __init__(self, parser: Any) -> None:
        self._parser = parser
        self._open: list[_OpenCollection] = []
        # None for a collection that is still open.
        self._anchors: dict[str, _Part | None] = {}
        self._root: yaml.Node | None = None
        self._nodes = 0
        self._size = 0

    def compose(self) -> yaml.Node | None:
        """Return the document's root node; None if the text has no document.

        Raises:
            yaml.MarkedYAMLError: the text is not YAML, holds a second document, or exceeds a limit of this module.
        """
        parser = self._parser
        parser.get_event()
        if parser.check_event(yaml.StreamEndEvent):
            return None
        start = parser.get_event()
        while not isinstance(event := parser.get_event(), yaml.DocumentEndEvent):
            self._read(event)
        if not parser.check_event(yaml.StreamEndEvent):
            raise ComposerError(
                "expected a single document in the stream",
                start.start_mark,
                "but found another document",
                parser.peek_event().start_mark,
            )
        return self._root

    def _read(self, event: Any) -> None:
        if isinstance(event, yaml.AliasEvent):
            self._add_alias(event)
        elif isinstance(event, yaml.ScalarEvent):
            self._count(event, 1 + len(event.value))
            tag = self._tag(event, yaml.ScalarNode, event.value)
            node = yaml.ScalarNode(tag, event.value, event.start_mark)  # type: ignore[arg-type]
            self._add(_Part(node, 1 + len(event.value), 1), event.anchor)
        elif isinstance(event, yaml.SequenceStartEvent):
            self._begin(event, yaml.SequenceNode)
        elif isinstance(event, yaml.MappingStartEvent):
            self._begin(event, yaml.MappingNode)
        else:
            self._end()

    def _begin(self, event: Any, kind: type[yaml.CollectionNode]) -> None:
        size_before = self._size
        self._count(event, 1)
        node = kind(self._tag(event, kind, None), [], event.start_mark)
        self._open.append(_OpenCollection(node, event.anchor, size_before))
        # Before the children are read: libyaml takes quadratic time for 100,000 open lists, 115 s.
        self._check_levels(0, node.start_mark)

    def _end(self) -> None:
        done = self._open.pop()
        self._add(_Part(done.node, self._size - done.size_before, 1 + done.levels), done.anchor)

    def _add_alias(self, event: Any) -> None:
        if event.anchor not in self._anchors:
            raise ComposerError(None, None, f"found undefined alias {event.anchor!r}", event.start_mark)
        part = self._anchors[event.anchor]
        if part is None:
            raise _too_deep(event.start_mark)
        self._grow(part.size, event.start_mark)
        self._check_levels(part.levels, event.start_mark)
        self._add(part, None)

    def _add(self, part: _Part, anchor: str | None) -> None:
        if anchor is not None:
            self._anchors[anchor] = part
        if not self._open:
            self._root = part.node
            return
        parent = self._open[-1]
        parent.levels = max(parent.levels, part.levels)
        if isinstance(parent.node, yaml.SequenceNode):
            parent.node.value.append(part.node)
        elif parent.key is None:
            parent.key = part.node
        else:
            parent.node.value.append((parent.key, part.node))
            parent.key = None

    def _count(self, event: Any, size: int) -> None:
        """Count a new node, and reserve its anchor."""
        if event.anchor is not None:
            if event.anchor in self._anchors:
                raise ComposerError(None, None, f"found duplicate anchor {event.anchor!r}", event.start_mark)
            self._anchors[event.anchor] = None
        self._nodes += 1
        if self._nodes > MAX_NODES:
            raise ComposerError(None, None, f"it has more than {MAX_NODES} nodes", event.start_mark)
        self._grow(size, event.start_mark)

    def _grow(self, size: int, mark: yaml.Mark) -> None:
        self._size += size
        if self._size > MAX_SIZE:
            problem = f"with its aliases filled in it has more than {MAX_SIZE} nodes and characters"
            raise ComposerError(None, None, problem, mark)

    def _check_levels(self, below: int, mark: yaml.Mark) -> None:
        if len(self._open) + below > MAX_LEVELS:
            raise _too_deep(mark)

    def _tag(self, event: Any, kind: type[yaml.Node], value: str | None) -> str:
        if event.tag is None or event.tag == "!":
            tag: str = self._parser.resolve(kind, value, event.implicit)
            return tag
        return str(event.tag)


def _too_deep(mark: yaml.Mark) -> ComposerError:
    return ComposerError(None, None, f"it nests more than {MAX_LEVELS} levels, or within itself", mark)
