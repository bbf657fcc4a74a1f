"""Reads probes: prompts with a category and a checker that scores an answer.

40 for each category of the shipped experts.yaml ship with this package.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.resources
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import orjson
from pydantic import BaseModel, BeforeValidator, Field, StringConstraints, ValidationError

from coe.core import Chat, Message
from coe.errors import DataError
from coe.measuring import checkers
from coe.measuring.checkers import problem_in
from coe.measuring.tables import numbered_rows
from coe.recipes.final_answers import chosen, json_form, normalised, unclear
from coe.routing.request_text import routing_text

Checker = Literal["exact", "choice", "numeric", "contains", "json", "constraints", "code", "judge"]
Difficulty = Literal["easy", "medium", "hard"]
DIFFICULTIES: tuple[str, ...] = get_args(Difficulty)
CHECKER_VERSION = 8
"""Part of every probe's digest; raise it when a checker's verdicts change, so that old scores are not reused."""
MAX_PROBLEMS = 20
"""Bad lines that one error names."""
SHIPPED = "shipped"
"""Name of the probes of this package and of the user's own file, as the benchmark of quality data."""


@dataclass(frozen=True, slots=True)
class Probe:
    """One prompt for every expert.

    `messages` is what is sent; `prompt` is the one text that stands for it in quality data (what a router would read).
    `reference` is the right answer, `tests` the Python asserts of a `code` probe, `tolerance` the relative error that a
    `numeric` answer may have, `constraints` the conditions of a `constraints` probe. The checker `grade` reads the
    reply of a cascade's judge. `digest` covers all that the score depends on, so neither the category nor the
    `difficulty`, which is one of DIFFICULTIES or "".
    """

    prompt_id: str
    messages: tuple[Mapping[str, Any], ...] = field(repr=False)
    prompt: str
    category: str
    checker: Checker | Literal["grade"]
    reference: str | None
    tests: str | None = field(repr=False)
    tolerance: float
    digest: str
    difficulty: str = ""
    constraints: Mapping[str, Any] | None = field(default=None, repr=False)


def read_probes(path: Path, *, categories: Collection[str]) -> list[Probe]:
    """All probes of a file, in order. Raises DataError with one line `file:line: problem` for each mistake.

    `categories` are the declared ones; a probe of any other category could never be routed.
    """
    probes: list[Probe] = []
    problems: list[str] = []
    seen: dict[str, int] = {}
    for number, row in numbered_rows(path):
        try:
            probe = probe_of(row, categories)
            if (earlier := seen.setdefault(probe.prompt_id, number)) != number:
                raise ValueError(f"the same id or prompt as line {earlier}; give each probe its own `id`")
            probes.append(probe)
        except ValueError as error:
            problems.append(f"{path}:{number}: {error}")
            if len(problems) == MAX_PROBLEMS:
                problems.append(f"{path}: and maybe more; reading stopped after {MAX_PROBLEMS} bad lines")
                break
    if problems:
        raise DataError("\n".join(problems))
    if not probes:
        raise DataError(f"{path}: holds no probes")
    return probes


def own_file(config: Path) -> Path:
    """The file of the user's own probes: probes.jsonl next to experts.yaml."""
    return config.parent / "probes.jsonl"


def shipped_rows() -> Iterator[dict[str, Any]]:
    """The rows of all shipped probes."""
    folder = importlib.resources.files("coe.measuring") / "probe_sets"
    for file in sorted(folder.iterdir(), key=lambda one: one.name):
        if file.name.endswith(".jsonl"):
            yield from map(orjson.loads, file.read_bytes().splitlines())


def default_probes(own: Path, categories: Collection[str]) -> list[Probe]:
    """The shipped probes of `categories` and those of the file `own`, if it exists, which replace shipped ones of the
    same id. Raises DataError for mistakes in the file."""
    shipped = [probe_of(row, categories) for row in shipped_rows() if row["category"] in categories]
    mine = read_probes(own, categories=categories) if own.is_file() else []
    return list({probe.prompt_id: probe for probe in (*shipped, *mine)}.values())


NonBlank = Annotated[str, StringConstraints(pattern=r"\S")]


class _Turn(BaseModel, strict=True):
    role: Literal["system", "developer", "user", "assistant"]
    content: str


class _Row(BaseModel, strict=True):
    """The fields of a probe, as they are written in a file."""

    id: NonBlank | int | None = None
    prompt: NonBlank | None = None
    messages: list[_Turn] = Field(default_factory=list)
    category: str
    checker: Checker
    reference: Annotated[
        NonBlank | None, BeforeValidator(lambda given: f"{given}" if type(given) in (int, float) else given)
    ] = None
    tests: NonBlank | None = None
    tolerance: float = Field(default=checkers.TOLERANCE, ge=0, lt=1, strict=False)  # text in CSV
    constraints: dict[str, Any] | None = None
    difficulty: Difficulty | Literal[""] = ""

    def turns(self) -> tuple[dict[str, Any], ...]:
        """Return what is sent. Raises ValueError unless it is either one prompt or a conversation."""
        if (self.prompt is None) == (not self.messages):
            raise ValueError("give either `prompt` (text) or `messages` (a conversation)")
        if self.prompt is not None:
            return ({"role": "user", "content": self.prompt},)
        if self.messages[-1].role != "user":
            raise ValueError("the last of `messages` must be the user's")
        return tuple(turn.model_dump() for turn in self.messages)

    def problem(self) -> str | None:
        """Return why the fields do not fit the checker, and the remedy; None if they do."""
        if self.checker == "constraints":
            return problem_in(self.constraints)
        if self.checker == "code":
            if self.tests is None:
                return "checker 'code' needs `tests`: Python asserts to run after the answer's code"
            try:
                ast.parse(self.tests)
            except (SyntaxError, RecursionError, MemoryError) as error:
                return f"`tests` are not Python: {error}"
            return None
        if self.checker == "judge":
            return None
        if self.reference is None:
            return f"checker {self.checker!r} needs a `reference`: the right answer as text"
        if self.checker == "numeric":
            return (why := unclear(self.reference)) and f"`reference` of a numeric probe {why}"
        form, needed = {
            "exact": (normalised, "more than punctuation, which this checker ignores"),
            "contains": (normalised, "more than punctuation, which this checker ignores"),
            "choice": (chosen, "one letter from A to J"),
            "json": (lambda text: json_form(text.strip()), "a JSON object or list, as text"),
        }[self.checker]
        return None if form(self.reference) else f"`reference` of a probe {self.checker!r} must be {needed}"


def probe_of(row: Any, categories: Collection[str]) -> Probe:
    """Return the probe of a row. Raises ValueError that names the mistake in the row and the remedy."""
    if not isinstance(row, dict):
        raise ValueError("expected an object with prompt, category, checker and reference or tests")
    row = {key: value for key, value in row.items() if value not in (None, "")}  # tables have every column in every row
    if isinstance(row.get("constraints"), dict):
        row["constraints"] = {name: wanted for name, wanted in row["constraints"].items() if wanted is not None}
    try:
        given = _Row.model_validate(row)
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"`{'.'.join(map(str, first['loc']))}`: {first['msg']}") from None
    if given.category not in categories:
        declared = ", ".join(categories)
        raise ValueError(f"`category` must be one that experts.yaml declares ({declared}), not {given.category!r}")
    messages = given.turns()
    if why := given.problem():
        raise ValueError(why)
    tests = given.tests if given.checker == "code" else None
    tolerance = given.tolerance if given.checker == "numeric" else checkers.TOLERANCE
    constraints = given.constraints if given.checker == "constraints" else None
    judged = [CHECKER_VERSION, messages, given.checker, given.reference, tests, tolerance, constraints]
    return Probe(
        prompt_id=json_digest(messages)[:12] if given.id is None else str(given.id),
        messages=messages,
        prompt=_text(messages),
        category=given.category,
        checker=given.checker,
        reference=given.reference,
        tests=tests,
        tolerance=tolerance,
        digest=json_digest(judged),
        difficulty=given.difficulty,
        constraints=constraints,
    )


def _text(messages: tuple[dict[str, Any], ...]) -> str:
    if len(messages) == 1:
        return str(messages[0]["content"])
    turns = tuple(Message(turn["role"], turn["content"]) for turn in messages)
    length = sum(len(turn.text) for turn in turns)
    return routing_text(Chat("auto", turns, stream=False, needs=frozenset(), characters=length, fields={}))


def json_digest(value: Any) -> str:
    """SHA-256 of a value as JSON."""
    return hashlib.sha256(orjson.dumps(value)).hexdigest()
