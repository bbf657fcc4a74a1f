"""Parse YAML into plain values with the line of every key and item, so that problems can name the line.

Size, nesting and the expansion of aliases are limited: a few lines of aliases could otherwise expand to gigabytes.

Formats problems of experts.yaml, without values of variables, and suggests the name that was probably meant.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel
from pydantic_core import ErrorDetails
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent, NodeEvent

from coe.errors import ConfigError

MAX_CHARACTERS = 2**20
"""Length of a text, and of all its values with aliases expanded."""
MAX_NODES = 200_000
"""Number of keys, values and items, with aliases expanded."""
MAX_DEPTH = 64
"""Levels of nested lists and mappings, with aliases expanded."""


KeyPath = tuple[str | int, ...]
"""Keys and indices that lead to a value, like pydantic's `loc`."""
Problems = Iterator[tuple[KeyPath, str]]
"""Key paths and their problems."""

_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}|^os\.environ/([A-Za-z_][A-Za-z0-9_]*)$")


@dataclass(frozen=True, slots=True)
class YamlSource:
    """A parsed file: its plain `value`, the 1-based line of each key path, and the problems of unset variables."""

    file: str
    value: Any
    lines: Mapping[KeyPath, int]
    unset: tuple[str, ...] = ()

    def at(self, path: KeyPath) -> str:
        """Return `file:line` of a key path, or of its nearest parent that has a line."""
        places = (path[:length] for length in range(len(path), 0, -1))
        return f"{self.file}:{next((self.lines[place] for place in places if place in self.lines), 1)}"


def read(path: Path, *, environ: Mapping[str, str] | None = None) -> YamlSource:
    """Parse a YAML 1.2 file. Raises ConfigError with file:line for invalid YAML and for duplicate keys."""
    return parse(read_text(path), path.name, environ=environ)


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


def parse(text: str, file: str, *, environ: Mapping[str, str] | None = None) -> YamlSource:
    """Parse a text; `file` is its name in problems. With `environ`, `${NAME}` and `os.environ/NAME` in strings are
    replaced by values of variables. Raises ConfigError as `read` does."""
    if len(text) > MAX_CHARACTERS:
        raise ConfigError(f"{file}:1: {len(text)} characters, more than the limit of {MAX_CHARACTERS}")
    try:
        _check_limits(text, file)
        reader = _PlainReader(file, environ)
        return YamlSource(file, reader.plain(YAML(typ="rt").load(text), ()), reader.lines, tuple(reader.unset))
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        problem = (error.problem or "not YAML").split("\n")[0]
        raise ConfigError(f"{file}:{line}: {problem}") from None
    except YAMLError as error:
        raise ConfigError(f"{file}:1: not YAML: {error}") from None
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:  # ruamel on `!!int ""`
        raise ConfigError(f"{file}:1: not YAML that can be parsed ({error!r}); leave out its tags (!!...)") from None


def _check_limits(text: str, file: str) -> None:
    """Refuse a text with too many or too deeply nested values before any is built."""
    open_anchors = list[str | None]()
    nodes = 0
    for event in YAML(typ="rt").parse(text):
        nodes += isinstance(event, NodeEvent)
        if isinstance(event, CollectionStartEvent):
            open_anchors.append(event.anchor)
        elif isinstance(event, CollectionEndEvent):
            open_anchors.pop()
        line = event.start_mark.line + 1
        if isinstance(event, AliasEvent) and event.anchor in open_anchors:
            problem = f"the alias *{event.anchor[:64]} is inside the node that it refers to"
            raise ConfigError(f"{file}:{line}: {problem}")
        if nodes > MAX_NODES or len(open_anchors) > MAX_DEPTH:
            what = f"more than {MAX_NODES} values" if nodes > MAX_NODES else f"nested deeper than {MAX_DEPTH} levels"
            raise ConfigError(f"{file}:{line}: {what}")


class _PlainReader:
    """Converts ruamel's nodes to plain values, aliases expanded and variables replaced, and collects their lines.
    Raises ConfigError if the expansion is too large."""

    def __init__(self, file: str, environ: Mapping[str, str] | None) -> None:
        self.lines: dict[KeyPath, int] = {}
        self.unset: list[str] = []
        self._file, self._environ = file, environ
        self._nodes = self._characters = 0

    def plain(self, node: Any, path: KeyPath) -> Any:
        self._nodes += 1
        self._characters += len(node) if isinstance(node, str) else 0
        if self._nodes > MAX_NODES or self._characters > MAX_CHARACTERS or len(path) > MAX_DEPTH:
            limits = f"{MAX_NODES} values, {MAX_CHARACTERS} characters or {MAX_DEPTH} levels"
            raise ConfigError(f"{self._at(path[:1])}: more than {limits}, aliases (*NAME) expanded; use fewer aliases")
        if isinstance(node, CommentedMap):
            for key in node:
                if key in node.lc.data:
                    self.lines[(*path, key)] = node.lc.key(key)[0] + 1
            return {key: self.plain(value, (*path, key)) for key, value in node.items()}
        if isinstance(node, CommentedSeq):
            for index in range(len(node)):
                self.lines[(*path, index)] = node.lc.item(index)[0] + 1
            return [self.plain(value, (*path, index)) for index, value in enumerate(node)]
        if isinstance(node, str):
            return str(node) if self._environ is None else self._with_values(node, path, self._environ)
        for kind in (bool, int, float):  # ruamel uses subclasses of these and of str, which keep the notation
            if isinstance(node, kind):
                return kind(node)
        return node

    def _with_values(self, text: str, path: KeyPath, environ: Mapping[str, str]) -> str:
        names = variable_names(text)
        self.unset += (
            f"{self._at(path)}: environment variable {name} is not set; export it before starting"
            for name in names
            if name not in environ
        )
        return _VARIABLE.sub(lambda match: environ.get(match[1] or match[2], match[0]), text)

    def _at(self, path: KeyPath) -> str:
        return YamlSource(self._file, None, self.lines).at(path)


def variable_names(text: str) -> tuple[str, ...]:
    """Return the names of the environment variables in a text, without duplicates."""
    return tuple(dict.fromkeys(match[1] or match[2] for match in _VARIABLE.finditer(text)))


QUOTED_CHARACTERS = 64
"""Characters of a wrong value that a problem repeats."""
MIN_SCRUBBED_CHARACTERS = 4
"""Values of variables that are at least so long are removed from problems."""
_QUOTED = re.compile(r"'([^']*)'")
_SYNONYMS: Mapping[str, tuple[str, ...]] = {
    "external": ("openai", "openrouter", "groq", "lmstudio", "http", "remote", "api"),
    "llama.cpp": ("llama-server", "gguf"),
    "litellm": ("anthropic", "azure", "bedrock", "vertex_ai", "gemini"),
    "images": ("vision",),
    "tools": ("function_calling",),
    "messages": ("anthropic",),
    "chat": ("openai",),
    "base_url": ("api_base", "url"),
    "context_length": ("max_model_len", "context_window"),
}
"""Names in experts.yaml and their synonyms in other products. A name is suggested only where it is allowed."""
_KINDS: Mapping[str, str] = {
    **dict.fromkeys(("tuple_type", "list_type", "frozen_set_type", "set_type"), "expected a list, such as [a, b]"),
    **dict.fromkeys(("dict_type", "model_type", "model_attributes_type"), "expected keys with values, such as {a: b}"),
}
"""Problems with the kind of a value, by pydantic's type of error, which names Python's types."""


def problems_of(root: type[BaseModel], errors: Sequence[ErrorDetails]) -> Iterator[tuple[KeyPath, str]]:
    """Yield the key path and the problem of each error that validating as the model `root` raised.

    A list that is too short only because its items are wrong is left out.
    """
    for error in errors:
        place = error["loc"]
        # pydantic does not count wrong items of a tuple, so it also reports the tuple as too short.
        if error["type"] != "too_short" or not any(
            one["loc"] != place and one["loc"][: len(place)] == place for one in errors
        ):
            yield place, _message(root, **error)


def _message(root: type[BaseModel], *, loc: KeyPath, type: str, msg: str, **more: Any) -> str:  # noqa: A002
    """Return a problem of a single value, from the fields of pydantic's error about the model `root`."""
    key = ".".join(map(str, loc))
    if type == "extra_forbidden":
        return f"unknown key {str(loc[-1])!r}{nearest(str(loc[-1]), _known_keys(root, loc[:-1]))}"
    if type == "missing":
        return f"{key} is missing"
    problem = f"{key}: {_KINDS.get(type) or msg[0].lower() + msg[1:]}"
    if type == "literal_error" and isinstance(value := more.get("input"), str):
        allowed = _QUOTED.findall(str(more.get("ctx", {}).get("expected", "")))
        problem += f", not {value[:QUOTED_CHARACTERS]!r}{_did_you_mean(value, allowed)}"
    return problem


def nearest(word: str, known: Sequence[str]) -> str:
    """Return the end of an error message for an unknown word: the word that was meant, or all known ones."""
    return _did_you_mean(word, known) or (f"; known: {', '.join(known)}" if known else "")


def _did_you_mean(word: str, known: Sequence[str]) -> str:
    """Return the end of an error message with the word that was probably meant; empty if none is near."""
    lowered = word.lower().strip()
    same = [one for one in known if one == lowered or lowered in _SYNONYMS.get(one, ())]
    close = same or get_close_matches(lowered, known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def _known_keys(root: type[BaseModel], path: KeyPath) -> list[str]:
    """Return the keys that the model at a path defines."""
    model: Any = root
    for step in path:
        if isinstance(step, str) and step in model.model_fields:
            model = _model_in(model.model_fields[step].annotation) or BaseModel
    return list(model.model_fields)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """Return the first model in the annotation of a field."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((model for part in get_args(annotation) if (model := _model_in(part)) is not None), None)


def without_values(problem: str, text: str, environ: Mapping[str, str]) -> str:
    """Return a problem of a text with the names of the text's variables for their values, as far as a problem repeats
    them. Shorter values than MIN_SCRUBBED_CHARACTERS stay."""
    used = (one for one in environ.items() if f"${{{one[0]}}}" in text or f"os.environ/{one[0]}" in text)
    for name, value in sorted(used, key=lambda one: -len(one[1])):  # one may be part of another
        for part in (value, value[:QUOTED_CHARACTERS]):
            for form in (part, repr(part)[1:-1]):
                if len(form) >= MIN_SCRUBBED_CHARACTERS:
                    problem = problem.replace(form, f"${{{name}}}")
    return problem
