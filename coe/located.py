"""YAML as plain values, with the line of every key and item, so that a mistake can be shown where it stands."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from coe.errors import ConfigError

Place = tuple[str | int, ...]
"""The keys and indices that lead to a value, as pydantic's `loc`."""

_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}|^os\.environ/([A-Za-z_][A-Za-z0-9_]*)$")


@dataclass(frozen=True, slots=True)
class Located:
    """A parsed file: its plain `value` and the 1-based line of each place in it."""

    file: str
    value: Any
    lines: Mapping[Place, int]

    def at(self, place: Place) -> str:
        """`file:line` of a place, or of the nearest enclosing one that stands in the file."""
        for length in range(len(place), -1, -1):
            if (line := self.lines.get(place[:length])) is not None:
                return f"{self.file}:{line}"
        return f"{self.file}:1"


def read(path: Path) -> Located:
    """Parse one YAML 1.2 file. Raises ConfigError with file:line for anything that is not YAML or repeats a key."""
    try:
        tree = YAML(typ="rt").load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(
            f"{path}: no such file; `coe` looks for experts.yaml here, or give one with --config"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        problem = (error.problem or "not YAML").split("\n")[0]
        raise ConfigError(f"{path.name}:{line}: {problem}") from None
    except YAMLError as error:
        raise ConfigError(f"{path.name}:1: not YAML: {error}") from None
    lines: dict[Place, int] = {(): 1}
    return Located(path.name, _plain(tree, (), lines), lines)


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

    return Located(located.file, fill(located.value, ()), located.lines), problems
