"""Changes of experts.yaml over the network: the text to edit, the check of a new one, the diff, and the replacement.

A text in which `secret_problems` recognises a literal key or password is neither shown nor accepted. A new text may use
only the environment variables that the one in force uses, so that an expert's address cannot
disclose others.
"""

from __future__ import annotations

import difflib
import fcntl
import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coe.artifacts.atomic_files import replace_file
from coe.artifacts.kinds import ROUTER
from coe.artifacts.store import ArtifactStore
from coe.errors import ArtifactError, ConfigError, ConfigRefused, DataError
from coe.fleet.planning import find_problems
from coe.registry import Registry, load_text, yaml_source
from coe.registry.hints import QUOTED_CHARACTERS
from coe.registry.yaml_source import KeyPath, YamlSource
from coe.runtime.active_state import untrained_categories
from coe.runtime.consequences import consequences_of
from coe.settings import Settings

MAX_TEXT_BYTES = 128 * 1024
"""Larger files are edited where they are: their check would delay requests."""
MAX_DIFF_CHARACTERS = 64 * 1024
BACKUP = "experts-before.yaml"
"""File of the state folder with the text before the last change."""
_LOCK = "experts.yaml.lock"
_VARIABLE = re.compile(r"(?:(?i:bearer|basic) +)?(?:\$\{[A-Za-z_][A-Za-z0-9_]*\}|os\.environ/[A-Za-z_][A-Za-z0-9_]*)")
_SENSITIVE = r"(?:api|access|private|auth)[_-]?key|secret|passw(?:or)?d|authorization|credential|token(?![a-z0-9_-])"
_SECRET_NAME = re.compile(rf"(?i){_SENSITIVE}")
"""Keys whose value is a secret. Options of servers and parameters of litellm may hold some; `max_tokens` is none."""
_USER_INFO = re.compile(r"://([^/\s@]*)@")
_QUERY = re.compile(rf"(?i)[?&][^=&#\s]*(?:{_SENSITIVE}|(?<=[?&])key|(?<=[?&])sig)[^=&#\s]*=([^&#\s]+)")
_COMMENT = re.compile(r"(?:^|\s)#.*")
_IN_COMMENT = re.compile(rf"(?i)(?:{_SENSITIVE})[\w-]*[\"']?\s*[:=]\s*[\"']?((?:(?:bearer|basic) +)?[^\s\"',]+)")
MIN_SCRUBBED_CHARACTERS = 4
"""Values of variables that are at least so long are removed from problems."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A checked text: its problems as `file:line: problem`, or else its consequences for the plan in use."""

    problems: tuple[str, ...]
    consequences: tuple[str, ...] = ()


def tag_of(content: bytes) -> str:
    """The ETag of a text, without quotes."""
    return hashlib.sha256(content).hexdigest()[:32]


def read_text(path: Path) -> bytes:
    """The file's content. Raises ConfigRefused if it is missing or too large."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_TEXT_BYTES + 1)
    except OSError as error:
        raise ConfigRefused(f"{path.name} cannot be read: {error.strerror or error}") from None
    if len(content) > MAX_TEXT_BYTES:
        raise ConfigRefused(f"{path.name} has more than {MAX_TEXT_BYTES >> 10} KiB; edit it where it is")
    return content


def unwritable(path: Path) -> str:
    """Return the reason why the file cannot be replaced here; empty if it can."""
    if not os.access(path, os.W_OK) or not os.access(path.resolve().parent, os.W_OK):
        return f"{path.name} is read-only where the gateway runs; change it where it is deployed from"
    return ""


def secret_problems(text: str, source: YamlSource) -> Iterator[str]:
    """Yield a problem for each literal key or password of a text and what was parsed from it: a value with such a name,
    a part of an address, or one of both in a comment. A secret under another name is not recognised."""
    remedy = "this is a literal key or password; put it into an environment variable: ${NAME}"
    for path, value in _scalars(source.value, ()):
        is_named = any(isinstance(key, str) and _SECRET_NAME.search(key) for key in path)
        if (is_named and not _VARIABLE.fullmatch(value)) or _is_literal(_in_addresses(value)):
            yield f"{source.at(path)}: {remedy}"
    for number, line in enumerate(text.splitlines(), 1):
        if (comment := _COMMENT.search(line)) is not None and _is_literal(
            [*_IN_COMMENT.findall(comment[0]), *_in_addresses(comment[0])]
        ):
            yield f"{source.file}:{number}: {remedy}, in a comment too"


def _in_addresses(text: str) -> list[str]:
    """The passwords in the addresses of a text, or user names without one, which are tokens, and its query values."""
    users = (found.partition(":") for found in _USER_INFO.findall(text))
    return [*(password if colon else user for user, colon, password in users), *_QUERY.findall(text)]


def _is_literal(secrets: Iterable[str]) -> bool:
    return any((value := secret.rstrip(".;:)]")) and not _VARIABLE.fullmatch(value) for secret in secrets)


def _scalars(value: Any, path: KeyPath) -> Iterator[tuple[KeyPath, str]]:
    """Yield all values but booleans as text."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _scalars(item, (*path, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _scalars(item, (*path, index))
    elif value is not None and not isinstance(value, bool):
        yield path, str(value)


def _variables(source: YamlSource) -> Iterator[tuple[KeyPath, str]]:
    """Yield the variables that are replaced by their values: those in comments are not."""
    for path, value in _scalars(source.value, ()):
        yield from ((path, name) for name in yaml_source.variable_names(value))


def check_candidate(text: str, current: str, settings: Settings, *, check: Callable[[Registry], None]) -> Candidate:
    """Check a text as `coe check` does, and as the reload of a gateway that serves `current`. `check` raises
    ConfigError for what a running gateway cannot take over."""
    name = settings.config.name
    environ = dict[str, str]()
    try:
        if len(text.encode()) > MAX_TEXT_BYTES:
            raise ConfigError(f"{name}:1: more than {MAX_TEXT_BYTES >> 10} KiB; edit the file where it is")
        known = {one for _, one in _variables(yaml_source.parse(current, name))}
        environ = {one: value for one, value in settings.environ.items() if one in known}
        source = yaml_source.parse(text, name)
        new = [
            f"{source.at(path)}: the variable {one} is new; add it to the file on the gateway's machine"
            for path, one in _variables(source)
            if one not in known
        ]
        if problems := [*secret_problems(text, source), *new]:
            return Candidate(tuple(problems))
        registry = load_text(text, name, environ=environ)
        if problems := [*_machine_problems(source, registry, settings)]:
            return Candidate(tuple(problems))
        check(registry)
        return Candidate((), tuple(one.sentence for one in consequences_of(settings, registry)))
    except (ConfigError, ArtifactError, DataError) as error:
        found = error.problems if isinstance(error, ConfigError) else (str(error),)
        return Candidate(tuple(without_values(problem, current, environ) for problem in found))


def _machine_problems(source: YamlSource, registry: Registry, settings: Settings) -> Iterator[str]:
    """Yield missing requirements of local experts, and categories that the router in use cannot classify."""
    for index, key, what in find_problems(registry.hosted_experts, base_folder=settings.config.parent):
        yield f"{source.at(('experts', index, key))}: {registry.experts[index].name!r}: {what}"
    store = ArtifactStore(settings.artifacts, ROUTER)
    if (version := store.in_use()) is not None:
        for index, what in untrained_categories(registry, store.manifest(version).categories).items():
            yield f"{source.at(('categories', index))}: {what}"


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


def diff_of(old: str, new: str, name: str) -> str:
    """The unified diff, at most MAX_DIFF_CHARACTERS; empty for equal texts."""
    lines = difflib.unified_diff(old.splitlines(), new.splitlines(), f"{name} in use", f"{name} new", lineterm="")
    diff = "\n".join(lines)
    return diff if len(diff) <= MAX_DIFF_CHARACTERS else diff[:MAX_DIFF_CHARACTERS] + "\n... (more is left out)"


def replace_declaration(settings: Settings, text: str, *, expected: str) -> str:
    """Replace the file atomically if its tag is `expected`, keep the old text as BACKUP, and return the new tag.

    Raises ConfigRefused if it was changed in between, another change is in progress, or it cannot be written.
    """
    path = settings.config.resolve()
    try:
        settings.home.mkdir(parents=True, exist_ok=True)
        with (settings.home / _LOCK).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            old = read_text(path)
            if tag_of(old) != expected:
                raise ConfigRefused(f"{path.name} was changed in the meantime; load it again")
            mode = path.stat().st_mode & 0o777
            replace_file(settings.home / BACKUP, old, mode=mode)
            replace_file(path, text.encode(), mode=mode)
    except BlockingIOError:
        raise ConfigRefused(f"another change of {path.name} is in progress; load it again") from None
    except OSError as error:
        raise ConfigRefused(f"{path.name} cannot be written: {error.strerror or error}") from None
    return tag_of(text.encode())
