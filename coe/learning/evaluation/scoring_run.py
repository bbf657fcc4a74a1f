"""Run experts on probes: ask, check, note in the journal; each expert at its own pace, its failures told.

The program in an answer: the Python a model wrote, without the prose around it.
"""

from __future__ import annotations

import ast
import asyncio
import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import orjson

from coe.core import Expert
from coe.errors import ExpertError, InvalidRequest, RequestError
from coe.learning.evaluation import checkers
from coe.learning.evaluation.answers import ProbeAnswer, RetryLimits, ask
from coe.learning.evaluation.journal import Cell, Journal
from coe.learning.evaluation.judge import Judge
from coe.learning.evaluation.probes import Probe
from coe.learning.evaluation.sandbox import Sandbox
from coe.mapping import ANSWER_FIELDS
from coe.registry import ExpertSpec

MOST_LINES = 5_000
"""Lines of an answer without fences that are searched for a program."""
_FENCE = re.compile(
    r"^[ \t]{0,3}(`{3,}|~{3,})[ \t]*([\w+-]*)[^\n]*\n(.*?)(?:^[ \t]{0,3}\1|\Z)", re.MULTILINE | re.DOTALL
)
_PYTHON = ("", "python", "py", "python3")
_BEGINS = re.compile(r"(?:async def|def|class|import|from|@)\b|@")


def program_of(answer: str) -> str:
    """The Python of an answer; empty when there is none.

    Of fenced blocks, those that define something (the others are mostly examples of use), or else all; a last fence may
    be left open. Without fences, the answer from its first definition or import to the last line that still parses.
    """
    blocks = [match[3] for match in _FENCE.finditer(answer) if match[2].lower() in _PYTHON]
    if blocks:
        return "\n".join([block for block in blocks if _defines(block)] or blocks)
    return _unfenced(answer.splitlines()[:MOST_LINES])


def _defines(block: str) -> bool:
    tree = _parsed(block)
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return tree is not None and any(isinstance(node, kinds) for node in tree.body)


def _unfenced(lines: list[str]) -> str:
    first = next((index for index, line in enumerate(lines) if _BEGINS.match(line)), None)
    if first is None:
        whole = "\n".join(lines)
        return whole if _parsed(whole) else ""
    kept = lines[first:]
    while kept:
        program = "\n".join(kept)
        try:
            ast.parse(program)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            # what follows the mistake cannot be part of the program either: cut there, one line at the least
            place = getattr(error, "lineno", None) or len(kept)
            kept = kept[: min(place, len(kept)) - 1]
        else:
            return program
    return ""


def _parsed(program: str) -> ast.Module | None:
    try:
        return ast.parse(program)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


GIVE_UP = 10
"""Probes an expert fails in a row, each after all retries, before the rest are left for the next run."""
_ANSWERED_BY = {"name", *ANSWER_FIELDS}


def keys_of(probes: Iterable[Probe], spec: ExpertSpec, judge: ExpertSpec | None) -> list[str]:
    """For every probe the digest of all its score depends on: it, what the expert answers by, and any judge."""
    answering, judging = _declared(spec), _declared(judge) if judge else ""
    parts = [[probe.digest, answering, judging if probe.checker == "judge" else ""] for probe in probes]
    return [hashlib.sha256(orjson.dumps(part)).hexdigest()[:32] for part in parts]


def _declared(spec: ExpertSpec) -> str:
    return orjson.dumps(spec.model_dump(mode="json", include=_ANSWERED_BY), option=orjson.OPT_SORT_KEYS).decode()


@dataclass(frozen=True, slots=True)
class Column:
    """One expert and what it has still to answer: probes by the key of their cell."""

    expert: Expert
    missing: Mapping[str, Probe]


@dataclass(frozen=True, slots=True)
class Run:
    """What all columns share. `tell` gets lines for people, `advance` an expert's name for every finished probe."""

    journal: Journal
    sandbox: Sandbox
    judge: Judge | None
    patience: RetryLimits
    concurrency: int
    tell: Callable[[str], None]
    advance: Callable[[str], None]


async def score_columns(columns: Sequence[Column], run: Run) -> None:
    """Score all that is missing, every expert at once, with at most `concurrency` probes in flight at each."""
    async with asyncio.TaskGroup() as tasks:
        for column in columns:
            pace = _Pace(iter(column.missing.items()))
            for _ in range(min(run.concurrency, len(column.missing))):
                tasks.create_task(_work(column.expert, pace, run))


@dataclass(slots=True)
class _Pace:
    """The probes one expert's workers share, and how it is doing."""

    rest: Iterator[tuple[str, Probe]]
    told: bool = False
    failures: int = 0
    """In a row."""


async def _work(expert: Expert, pace: _Pace, run: Run) -> None:
    while (item := next(pace.rest, None)) is not None:
        key, probe = item
        blank = Cell(key, probe.prompt_id, expert.name)
        try:
            cell = await _score(probe, expert, blank, run)
            pace.failures = 0
        except RequestError as error:
            cell = replace(blank, code=error.code, error=str(error))
            _note_failure(cell, pace, run, hopeless=isinstance(error, ExpertError) and error.retryable)
        run.journal.append(cell)
        run.advance(expert.name)


def _note_failure(cell: Cell, pace: _Pace, run: Run, *, hopeless: bool) -> None:
    """Tell the first failure at once. An expert that is down is left alone; one that rejects some probes is not."""
    if not pace.told:
        pace.told = True
        run.tell(f"{cell.expert}: probe {cell.prompt_id} has no score: {cell.error}")
    pace.failures += hopeless
    if pace.failures == GIVE_UP:
        pace.rest = iter(())
        run.tell(f"{cell.expert}: failed {GIVE_UP} probes in a row; the rest are left for the next run")


async def _score(probe: Probe, expert: Expert, blank: Cell, run: Run) -> Cell:
    """Raises a RequestError where the expert, or the judge, gave no usable answer."""
    answer = await ask(expert, probe.messages, patience=run.patience)
    cell = replace(
        blank,
        input_tokens=answer.input_tokens,
        output_tokens=answer.output_tokens,
        latency_ms=answer.latency_ms,
        answer=hashlib.sha256(answer.text.encode("utf-8", "replace")).hexdigest(),
        cut=answer.cut,
    )
    if probe.checker == "code":
        assert probe.tests is not None
        verdict = await run.sandbox.run(program_of(answer.text), probe.tests)
        if verdict.unusable:
            raise InvalidRequest(f"the tests of the probe cannot be run: {verdict.why}", code="tests_unusable")
        return replace(cell, score=float(verdict.passed), note=verdict.why)
    if probe.checker == "judge":
        return await _judged(probe, answer, cell, run.judge)
    return replace(cell, score=_checked(probe, answer.text))


async def _judged(probe: Probe, answer: ProbeAnswer, cell: Cell, judge: Judge | None) -> Cell:
    assert judge is not None, "probes that need a judge are refused where there is none"
    try:
        judgement = await judge.score(probe.prompt, answer.text, reference=probe.reference)
    except (ExpertError, InvalidRequest) as error:
        error.args = (f"the judge failed: {error}",)
        raise
    return replace(cell, score=judgement.score, consistent=judgement.consistent)


def _checked(probe: Probe, answer: str) -> float:
    assert probe.reference is not None
    if probe.checker == "numeric":
        return checkers.numeric(answer, probe.reference, tolerance=probe.tolerance)
    plain = {"exact": checkers.exact, "choice": checkers.choice, "contains": checkers.contains}
    return plain[probe.checker](answer, probe.reference)
