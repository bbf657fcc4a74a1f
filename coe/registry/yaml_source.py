"""YAML as plain values, with the line of every key and item, so that a mistake can be shown where it stands."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from coe.errors import ConfigError
from coe.yaml_limits import MAX_CHARACTERS, MAX_DEPTH, LimitExceeded, check_limits

Place = tuple[str | int, ...]
"""The keys and indices that lead to a value, as pydantic's `loc`."""

_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}|^os\.environ/([A-Za-z_][A-Za-z0-9_]*)$")


@dataclass(frozen=True, slots=True)
class Located:
    """A parsed file: its plain `value` and the 1-based line of each place in it. `parts` are what came to a place from
    somewhere else."""

    file: str
    value: Any
    lines: Mapping[Place, int]
    parts: Mapping[Place, Located] = field(default_factory=dict)

    def at(self, place: Place) -> str:
        """`file:line` of a place, or of the nearest enclosing one that stands in the file."""
        for start, part in self.parts.items():
            if place[: len(start)] == start:
                return part.at(place[len(start) :])
        for length in range(len(place), -1, -1):
            if (line := self.lines.get(place[:length])) is not None:
                return f"{self.file}:{line}"
        return f"{self.file}:1"


def read(path: Path) -> Located:
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


def parsed(text: str, file: str) -> Located:
    """The same of a text that `file` names."""
    return _parsed(text, file, max_depth=MAX_DEPTH, aliases=True)


def _parsed(text: str, file: str, *, max_depth: int, aliases: bool) -> Located:
    lines: dict[Place, int] = {(): 1}
    try:
        check_limits(text, max_depth=max_depth, aliases=aliases)
        return Located(file, _plain(YAML(typ="rt").load(text), (), lines), lines)
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


def simple(text: str, file: str, *, depth: int) -> Located:
    """The same of a text that a stranger may have sent: without aliases, by which a few lines stand for gigabytes, and
    nested at most `depth` deep."""
    return _parsed(text, file, max_depth=depth, aliases=False)


def extended(base: Located, section: str, part: Located) -> Located:
    """`base` with one item more in a list of its own."""
    items = [*base.value[section], part.value]
    value = {**base.value, section: items}
    return Located(base.file, value, base.lines, {**base.parts, (section, len(items) - 1): part})


def inside(whole: Located, place: Place) -> Located:
    """What stands at a place, as a whole of its own."""
    value = whole.value
    for step in place:
        value = value[step]
    length = len(place)
    lines = {one[length:]: line for one, line in whole.lines.items() if one[:length] == place}
    return Located(whole.file, value, lines)


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


def with_variables(located: Located, environ: Mapping[str, str]) -> tuple[Located, list[str]]:
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

    return Located(located.file, fill(located.value, ()), located.lines, located.parts), problems


def variables(text: str) -> tuple[str, ...]:
    """The names of the environment that a text mentions, each once."""
    return tuple(dict.fromkeys(match[1] or match[2] for match in _VARIABLE.finditer(text)))
