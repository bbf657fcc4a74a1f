"""Limits of a YAML text, checked on its events before anything is built: size, nesting, and what aliases expand to."""

from __future__ import annotations

from dataclasses import dataclass

from ruamel.yaml import YAML
from ruamel.yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent, Event, NodeEvent, ScalarEvent

MAX_CHARACTERS = 4 * 2**20
"""Length of a text, and of all its values once the aliases are expanded."""
MAX_NODES = 200_000
"""Keys, values and items, once the aliases are expanded."""
MAX_DEPTH = 64
"""Nested lists and mappings, once the aliases are expanded."""


class LimitExceeded(Exception):
    """A text exceeds a limit at a 1-based `line`."""

    def __init__(self, line: int, problem: str) -> None:
        super().__init__(problem)
        self.line = line


@dataclass(slots=True)
class _Size:
    """What a node expands to: nodes, characters of scalars, and levels of nesting."""

    nodes: int = 1
    characters: int = 0
    depth: int = 0

    def include(self, child: _Size) -> None:
        self.nodes += child.nodes
        self.characters += child.characters
        self.depth = max(self.depth, child.depth + 1)


def check_limits(text: str, *, max_depth: int = MAX_DEPTH, aliases: bool = True) -> None:
    """Raises LimitExceeded, or a YAMLError or ValueError for what is not YAML. Without `aliases` none may occur."""
    if len(text) > MAX_CHARACTERS:
        raise LimitExceeded(1, f"{len(text)} characters, more than the {MAX_CHARACTERS} that a file may have")
    expansion = _Expansion(max_depth)
    for event in YAML(typ="rt").parse(text):
        if isinstance(event, AliasEvent) and not aliases:
            raise LimitExceeded(_line(event), "aliases are not understood here")
        expansion.add(event)


class _Expansion:
    """The sizes of the collections that are open, and of what anchors name."""

    def __init__(self, max_depth: int) -> None:
        self._max_depth = max_depth
        self._open: list[tuple[str | None, _Size]] = []
        self._anchored: dict[str, _Size | None] = {}
        self._nodes = self._characters = 0

    def add(self, event: Event) -> None:
        if isinstance(event, CollectionStartEvent):
            self._open.append((event.anchor, _Size()))
            if event.anchor is not None:
                self._anchored[event.anchor] = None  # until its end
            self._count(event, _Size())
        elif isinstance(event, CollectionEndEvent):
            anchor, size = self._open.pop()
            self._close(anchor, size)
        elif isinstance(event, AliasEvent):
            self._alias(event)
        elif isinstance(event, ScalarEvent):
            size = _Size(characters=len(event.value))
            self._count(event, size)
            self._close(event.anchor, size)

    def _alias(self, event: AliasEvent) -> None:
        size = self._anchored.get(event.anchor, _Size())  # one that nothing defines is refused when it is resolved
        if size is None:
            raise LimitExceeded(_line(event), f"the alias *{event.anchor[:64]} stands inside of what it names")
        self._count(event, size)
        self._close(None, size)

    def _count(self, event: NodeEvent, size: _Size) -> None:
        """Raises LimitExceeded where the text grows too large with this node."""
        self._nodes += size.nodes
        self._characters += size.characters
        if self._nodes > MAX_NODES or self._characters > MAX_CHARACTERS:
            what = f"{MAX_NODES} values or {MAX_CHARACTERS} characters, aliases (*NAME) expanded"
            raise LimitExceeded(_line(event), f"this makes more than {what}; write fewer aliases")
        if len(self._open) + size.depth > self._max_depth:
            raise LimitExceeded(_line(event), f"nested more than {self._max_depth} deep")

    def _close(self, anchor: str | None, size: _Size) -> None:
        if anchor is not None:
            self._anchored[anchor] = size
        if self._open:
            self._open[-1][1].include(size)


def _line(event: Event) -> int:
    return int(event.start_mark.line) + 1
