"""Parse YAML into plain values with the line of every key and item, so that problems can name the line.

Before any value is built, `check_limits` limits size, nesting and the expansion of aliases on the parser's events: a
few lines of aliases could otherwise expand to gigabytes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent, Event, NodeEvent, ScalarEvent

from coe.errors import ConfigError

MAX_CHARACTERS = 4 * 2**20
"""Length of a text, and of all its values with aliases expanded."""
MAX_NODES = 200_000
"""Number of keys, values and items, with aliases expanded."""
MAX_DEPTH = 64
"""Levels of nested lists and mappings, with aliases expanded."""


class LimitExceeded(Exception):
    """A text exceeds a limit at the 1-based `line`."""

    def __init__(self, line: int, problem: str) -> None:
        super().__init__(problem)
        self.line = line


@dataclass(slots=True)
class _Size:
    """Size of a node with aliases expanded: nodes, characters of scalars, and levels of nesting."""

    nodes: int = 1
    characters: int = 0
    depth: int = 0

    def include(self, child: _Size) -> None:
        self.nodes += child.nodes
        self.characters += child.characters
        self.depth = max(self.depth, child.depth + 1)


def check_limits(text: str) -> None:
    """Raise LimitExceeded if a text is too large, a YAMLError or ValueError for text that is not YAML."""
    if len(text) > MAX_CHARACTERS:
        raise LimitExceeded(1, f"{len(text)} characters, more than the limit of {MAX_CHARACTERS}")
    expansion = _Expansion()
    for event in YAML(typ="rt").parse(text):
        expansion.add(event)


class _Expansion:
    """Sizes of the open collections and of the anchored nodes, updated event by event."""

    def __init__(self) -> None:
        self._open: list[tuple[str | None, _Size]] = []
        self._anchored: dict[str, _Size | None] = {}
        self._nodes = self._characters = 0

    def add(self, event: Event) -> None:
        if isinstance(event, CollectionStartEvent):
            self._open.append((event.anchor, _Size()))
            if event.anchor is not None:
                self._anchored[event.anchor] = None  # until the collection ends
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
        size = self._anchored.get(event.anchor, _Size())  # an undefined one is rejected when it is resolved
        if size is None:
            raise LimitExceeded(_line(event), f"the alias *{event.anchor[:64]} is inside the node that it refers to")
        self._count(event, size)
        self._close(None, size)

    def _count(self, event: NodeEvent, size: _Size) -> None:
        """Add a node. Raises LimitExceeded."""
        self._nodes += size.nodes
        self._characters += size.characters
        if self._nodes > MAX_NODES or self._characters > MAX_CHARACTERS:
            limits = f"{MAX_NODES} values or {MAX_CHARACTERS} characters, aliases (*NAME) expanded"
            raise LimitExceeded(_line(event), f"more than {limits}; use fewer aliases")
        if len(self._open) + size.depth > MAX_DEPTH:
            raise LimitExceeded(_line(event), f"nested deeper than {MAX_DEPTH} levels")

    def _close(self, anchor: str | None, size: _Size) -> None:
        if anchor is not None:
            self._anchored[anchor] = size
        if self._open:
            self._open[-1][1].include(size)


def _line(event: Event) -> int:
    return int(event.start_mark.line) + 1


KeyPath = tuple[str | int, ...]
"""Keys and indices that lead to a value, like pydantic's `loc`."""
Problems = Iterator[tuple[KeyPath, str]]
"""Key paths and their problems."""

_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}|^os\.environ/([A-Za-z_][A-Za-z0-9_]*)$")


@dataclass(frozen=True, slots=True)
class YamlSource:
    """A parsed file: its plain `value` and the 1-based line of each key path."""

    file: str
    value: Any
    lines: Mapping[KeyPath, int]

    def at(self, path: KeyPath) -> str:
        """Return `file:line` of a key path, or of its nearest parent that has a line."""
        for length in range(len(path), -1, -1):
            if (line := self.lines.get(path[:length])) is not None:
                return f"{self.file}:{line}"
        return f"{self.file}:1"


def read(path: Path) -> YamlSource:
    """Parse a YAML 1.2 file. Raises ConfigError with file:line for invalid YAML and for duplicate keys."""
    return parse(read_text(path), path.name)


def read_text(path: Path) -> str:
    """Return the text of a file, up to a little more than `parse` accepts. Raises ConfigError if it cannot be read."""
    try:
        with path.open("rb") as file:  # a device or a pipe may have no end
            return file.read(4 * MAX_CHARACTERS + 1).decode("utf-8").removeprefix("\ufeff")
    except FileNotFoundError:
        raise ConfigError(
            f"{path}: no such file; `coe init` writes one. `coe` reads experts.yaml from this folder, or the file that "
            "--config names"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error


def parse(text: str, file: str) -> YamlSource:
    """Parse a text; `file` is its name in problems. Raises ConfigError as `read` does."""
    lines: dict[KeyPath, int] = {(): 1}
    try:
        check_limits(text)
        return YamlSource(file, _plain(YAML(typ="rt").load(text), (), lines), lines)
    except LimitExceeded as error:
        raise ConfigError(f"{file}:{error.line}: {error}") from None
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        problem = (error.problem or "not YAML").split("\n")[0]
        raise ConfigError(f"{file}:{line}: {problem}") from None
    except YAMLError as error:
        raise ConfigError(f"{file}:1: not YAML: {error}") from None
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:  # ruamel on `!!int ""`
        raise ConfigError(f"{file}:1: not YAML that can be parsed ({error!r}); leave out its tags (!!...)") from None


def _plain(node: Any, path: KeyPath, lines: dict[KeyPath, int]) -> Any:
    """Convert ruamel's nodes to plain values and collect their lines."""
    if isinstance(node, CommentedMap):
        for key in node:
            if key in node.lc.data:
                lines[(*path, key)] = node.lc.key(key)[0] + 1
        return {key: _plain(value, (*path, key), lines) for key, value in node.items()}
    if isinstance(node, CommentedSeq):
        for index in range(len(node)):
            lines[(*path, index)] = node.lc.item(index)[0] + 1
        return [_plain(value, (*path, index), lines) for index, value in enumerate(node)]
    for plain in (bool, int, float, str):  # ruamel uses subclasses of these, which keep the notation
        if isinstance(node, plain):
            return plain(node)
    return node


def substitute_variables(source: YamlSource, environ: Mapping[str, str]) -> tuple[YamlSource, list[str]]:
    """Replace `${NAME}` and `os.environ/NAME` in all strings; also return one problem per unset variable."""
    problems: list[str] = []

    def substitute(value: Any, path: KeyPath) -> Any:
        if isinstance(value, dict):
            return {key: substitute(item, (*path, key)) for key, item in value.items()}
        if isinstance(value, list):
            return [substitute(item, (*path, index)) for index, item in enumerate(value)]
        if not isinstance(value, str):
            return value

        def variable_value(match: re.Match[str]) -> str:
            name = match[1] or match[2]
            if name not in environ:
                problems.append(f"{source.at(path)}: environment variable {name} is not set; export it before starting")
            return environ.get(name, match[0])

        return _VARIABLE.sub(variable_value, value)

    return YamlSource(source.file, substitute(source.value, ()), source.lines), problems


def variable_names(text: str) -> tuple[str, ...]:
    """Return the names of the environment variables in a text, without duplicates."""
    return tuple(dict.fromkeys(match[1] or match[2] for match in _VARIABLE.finditer(text)))
