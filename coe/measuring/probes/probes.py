"""Reads probes from JSON Lines or parquet: prompts with a category and a checker that scores an answer.

A probe with `draw` is a template: it is drawn again for every seed.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, get_args

import orjson

from coe.core import Chat, Message
from coe.errors import DataError
from coe.measuring import checkers
from coe.measuring.probes.constraints import json_in, problem_in
from coe.measuring.probes.templates import drawn
from coe.measuring.tables import numbered_rows
from coe.recipes.final_answers.choices import chosen
from coe.recipes.final_answers.numbers import unclear
from coe.recipes.final_answers.wording import normalised
from coe.routing.request_text import routing_text

Checker = Literal["exact", "choice", "numeric", "contains", "json", "constraints", "code", "judge"]
CHECKERS: tuple[str, ...] = get_args(Checker)
DIFFICULTIES = ("easy", "medium", "hard")
CHECKER_VERSION = 7
"""Part of every probe's digest; raise it when a checker's verdicts change, so that old scores are not reused."""
MAX_PROBLEMS = 20
"""Bad lines that one error names."""
_ROLES = ("system", "developer", "user", "assistant")


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


def read_probes(path: Path, *, categories: Collection[str], seed: int = 0) -> list[Probe]:
    """All probes of a file, in order. Raises DataError with one line `file:line: problem` for each mistake.

    `categories` are the declared ones; a probe of any other category could never be routed. Templates are drawn with
    `seed`.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file; expected JSON Lines or parquet with one probe a line")
    probes: list[Probe] = []
    problems: list[str] = []
    seen: dict[str, int] = {}
    for number, row in numbered_rows(path):
        try:
            probe = probe_of(row, categories, seed)
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


def probe_of(row: Any, categories: Collection[str], seed: int = 0) -> Probe:
    """Return the probe of a row. Raises ValueError that names the mistake in the row and the remedy."""
    if not isinstance(row, dict):
        raise ValueError("expected an object with prompt, category, checker and reference or tests")
    row = {key: value for key, value in row.items() if value is not None}  # parquet has every column in every row
    if "draw" in row:
        row = drawn(row, seed)
    messages = _messages(row)
    checker = _checker(row)
    reference, tests, tolerance = _reference(row, checker), _tests(row, checker), _tolerance(row, checker)
    constraints = _constraints(row, checker)
    judged = [CHECKER_VERSION, messages, checker, reference, tests, tolerance, constraints]
    return Probe(
        prompt_id=_prompt_id(row, messages),
        messages=messages,
        prompt=_text(messages),
        category=_category(row, categories),
        checker=checker,
        reference=reference,
        tests=tests,
        tolerance=tolerance,
        digest=_digest(judged),
        difficulty=_difficulty(row),
        constraints=constraints,
    )


def _messages(row: Mapping[str, Any]) -> tuple[dict[str, Any], ...]:
    if ("prompt" in row) == ("messages" in row):
        raise ValueError("give either `prompt` (text) or `messages` (a conversation)")
    if "prompt" in row:
        if not isinstance(row["prompt"], str) or not row["prompt"].strip():
            raise ValueError("`prompt` must be text and not empty")
        return ({"role": "user", "content": row["prompt"]},)
    turns = row["messages"]
    if not isinstance(turns, list) or not turns or not all(map(_is_turn, turns)) or turns[-1]["role"] != "user":
        roles = ", ".join(_ROLES)
        raise ValueError(
            f"`messages` must be a list of {{role, content}} with text content (roles: {roles}), user last"
        )
    return tuple({"role": turn["role"], "content": turn["content"]} for turn in turns)


def _is_turn(turn: Any) -> bool:
    return isinstance(turn, dict) and turn.get("role") in _ROLES and isinstance(turn.get("content"), str)


def _text(messages: tuple[dict[str, Any], ...]) -> str:
    if len(messages) == 1:
        return str(messages[0]["content"])
    turns = tuple(Message(turn["role"], turn["content"]) for turn in messages)
    length = sum(len(turn.text) for turn in turns)
    return routing_text(Chat("auto", turns, stream=False, needs=frozenset(), characters=length, fields={}))


def _checker(row: Mapping[str, Any]) -> Checker:
    name = row.get("checker")
    if name not in CHECKERS:
        close = get_close_matches(str(name), CHECKERS, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"`checker` must be one of {', '.join(CHECKERS)}{hint}")
    return name  # type: ignore[no-any-return]


def _reference(row: Mapping[str, Any], checker: Checker) -> str | None:
    reference = row.get("reference")
    if isinstance(reference, (int, float)) and not isinstance(reference, bool):
        reference = f"{reference}"
    if reference is None and checker in ("code", "judge", "constraints"):
        return None
    if not isinstance(reference, str) or not reference.strip():
        raise ValueError(f"checker {checker!r} needs a `reference`: the right answer as text")
    if checker in ("exact", "contains") and not normalised(reference):
        raise ValueError("`reference` is nothing but punctuation, which this checker ignores")
    if checker == "choice" and chosen(reference) is None:
        raise ValueError("`reference` of a choice must be one letter from A to J")
    if checker == "numeric" and (why := unclear(reference)):
        raise ValueError(f"`reference` of a numeric probe {why}")
    if checker == "json" and json_in(reference) is None:
        raise ValueError("`reference` of a json probe must be a JSON object or list, as text")
    return reference


def _tests(row: Mapping[str, Any], checker: Checker) -> str | None:
    if checker != "code":
        return None
    tests = row.get("tests")
    if not isinstance(tests, str) or not tests.strip():
        raise ValueError("checker 'code' needs `tests`: Python asserts to run after the answer's code")
    try:
        tree = ast.parse(tests)
    except SyntaxError as error:
        raise ValueError(f"`tests` are not Python: {error.msg} (line {error.lineno} of the tests)") from None
    except (RecursionError, MemoryError):
        raise ValueError("`tests` are nested too deeply") from None
    if not any(isinstance(node, (ast.Assert, ast.Call, ast.Raise)) for node in ast.walk(tree)):
        raise ValueError("`tests` check nothing; write asserts")
    return tests


def _tolerance(row: Mapping[str, Any], checker: Checker) -> float:
    tolerance = row.get("tolerance", checkers.TOLERANCE)
    if checker == "numeric" and (not isinstance(tolerance, (int, float)) or not 0 <= tolerance < 1):
        raise ValueError("`tolerance` is a relative error from 0 to 1")
    return tolerance if checker == "numeric" else checkers.TOLERANCE


def _constraints(row: Mapping[str, Any], checker: Checker) -> Mapping[str, Any] | None:
    if checker != "constraints":
        return None
    constraints = row.get("constraints")
    if isinstance(constraints, dict):  # parquet has every key in every row
        constraints = {name: wanted for name, wanted in constraints.items() if wanted is not None}
    if why := problem_in(constraints):
        raise ValueError(why)
    return constraints


def _difficulty(row: Mapping[str, Any]) -> str:
    difficulty = row.get("difficulty", "")
    if difficulty not in ("", *DIFFICULTIES):
        raise ValueError(f"`difficulty` must be one of {', '.join(DIFFICULTIES)}")
    return str(difficulty)


def _category(row: Mapping[str, Any], categories: Collection[str]) -> str:
    category = row.get("category")
    if not isinstance(category, str) or category not in categories:
        declared = ", ".join(categories)
        raise ValueError(f"`category` must be one that experts.yaml declares ({declared}), not {category!r}")
    return category


def _prompt_id(row: Mapping[str, Any], messages: tuple[dict[str, Any], ...]) -> str:
    given = row.get("id")
    if given is None:
        return _digest(messages)[:12]
    if not isinstance(given, (str, int)) or not str(given).strip():
        raise ValueError("`id` must be text or a whole number")
    return str(given)


def _digest(value: Any) -> str:
    return hashlib.sha256(orjson.dumps(value)).hexdigest()
