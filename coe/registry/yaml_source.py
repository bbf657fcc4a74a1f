"""YAML as plain values, with the line of every key and item, so that a mistake can be shown where it stands.

Limits of a YAML text, checked on its events before anything is built: size, nesting, and what aliases expand to.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent, Event, NodeEvent, ScalarEvent

from coe.errors import ConfigError

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


Place = tuple[str | int, ...]
"""The keys and indices that lead to a value, as pydantic's `loc`."""

_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}|^os\.environ/([A-Za-z_][A-Za-z0-9_]*)$")


@dataclass(frozen=True, slots=True)
class YamlSource:
    """A parsed file: its plain `value` and the 1-based line of each place in it. `parts` are what came to a place from
    somewhere else."""

    file: str
    value: Any
    lines: Mapping[Place, int]
    parts: Mapping[Place, YamlSource] = field(default_factory=dict)

    def at(self, place: Place) -> str:
        """`file:line` of a place, or of the nearest enclosing one that stands in the file."""
        for start, part in self.parts.items():
            if place[: len(start)] == start:
                return part.at(place[len(start) :])
        for length in range(len(place), -1, -1):
            if (line := self.lines.get(place[:length])) is not None:
                return f"{self.file}:{line}"
        return f"{self.file}:1"


def read(path: Path) -> YamlSource:
    """Parse one YAML 1.2 file. Raises ConfigError with file:line for anything that is not YAML or repeats a key."""
    try:
        with path.open("rb") as file:  # a device or a pipe may have no end
            text = file.read(4 * MAX_CHARACTERS + 1).decode("utf-8").removeprefix("\ufeff")
    except FileNotFoundError:
        raise ConfigError(
            f"{path}: no such file; `coe` looks for experts.yaml here, or give one with --config"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    return parsed(text, path.name)


def parsed(text: str, file: str) -> YamlSource:
    """The same of a text that `file` names."""
    return _parsed(text, file, max_depth=MAX_DEPTH, aliases=True)


def _parsed(text: str, file: str, *, max_depth: int, aliases: bool) -> YamlSource:
    lines: dict[Place, int] = {(): 1}
    try:
        check_limits(text, max_depth=max_depth, aliases=aliases)
        return YamlSource(file, _plain(YAML(typ="rt").load(text), (), lines), lines)
    except LimitExceeded as error:
        raise ConfigError(f"{file}:{error.line}: {error}") from None
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        problem = (error.problem or "not YAML").split("\n")[0]
        raise ConfigError(f"{file}:{line}: {problem}") from None
    except YAMLError as error:
        raise ConfigError(f"{file}:1: not YAML: {error}") from None
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:  # the reader of `!!int ""`
        raise ConfigError(f"{file}:1: not YAML that can be read ({error!r}); leave out its tags (!!...)") from None


def simple(text: str, file: str, *, depth: int) -> YamlSource:
    """The same of a text that a stranger may have sent: without aliases, by which a few lines stand for gigabytes, and
    nested at most `depth` deep."""
    return _parsed(text, file, max_depth=depth, aliases=False)


def extended(base: YamlSource, section: str, part: YamlSource) -> YamlSource:
    """`base` with one item more in a list of its own."""
    items = [*base.value[section], part.value]
    value = {**base.value, section: items}
    return YamlSource(base.file, value, base.lines, {**base.parts, (section, len(items) - 1): part})


def inside(whole: YamlSource, place: Place) -> YamlSource:
    """What stands at a place, as a whole of its own."""
    value = whole.value
    for step in place:
        value = value[step]
    length = len(place)
    lines = {one[length:]: line for one, line in whole.lines.items() if one[:length] == place}
    return YamlSource(whole.file, value, lines)


def _plain(node: Any, place: Place, lines: dict[Place, int]) -> Any:
    if isinstance(node, CommentedMap):
        for key in node:
            if key in node.lc.data:
                lines[(*place, key)] = node.lc.key(key)[0] + 1
        return {key: _plain(value, (*place, key), lines) for key, value in node.items()}
    if isinstance(node, CommentedSeq):
        for index in range(len(node)):
            lines[(*place, index)] = node.lc.item(index)[0] + 1
        return [_plain(value, (*place, index), lines) for index, value in enumerate(node)]
    for plain in (bool, int, float, str):  # ruamel keeps the notation in subclasses of these
        if isinstance(node, plain):
            return plain(node)
    return node


def with_variables(located: YamlSource, environ: Mapping[str, str]) -> tuple[YamlSource, list[str]]:
    """Fill in `${NAME}` and `os.environ/NAME` in every string; also returns one problem per missing variable."""
    problems: list[str] = []

    def fill(value: Any, place: Place) -> Any:
        if isinstance(value, dict):
            return {key: fill(item, (*place, key)) for key, item in value.items()}
        if isinstance(value, list):
            return [fill(item, (*place, index)) for index, item in enumerate(value)]
        if not isinstance(value, str):
            return value

        def look_up(match: re.Match[str]) -> str:
            name = match[1] or match[2]
            if name not in environ:
                problems.append(
                    f"{located.at(place)}: environment variable {name} is not set; export it before starting"
                )
            return environ.get(name, match[0])

        return _VARIABLE.sub(look_up, value)

    return YamlSource(located.file, fill(located.value, ()), located.lines, located.parts), problems


def variables(text: str) -> tuple[str, ...]:
    """The names of the environment that a text mentions, each once."""
    return tuple(dict.fromkeys(match[1] or match[2] for match in _VARIABLE.finditer(text)))
