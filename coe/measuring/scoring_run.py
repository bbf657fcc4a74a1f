"""Scores experts on probes: requests answers, checks them and appends each result to the journal of the run.

All experts run at once, each with its own queue of probes. An expert that fails many probes in a row is skipped until
the next run. The journal has one JSON line per probe and expert, so that a stopped run can continue.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import IO

import orjson

from coe.core import Expert
from coe.errors import DataError, ExpertError, InvalidRequest, RequestError
from coe.measuring import checkers
from coe.measuring.answers import CUT_REASON, ProbeAnswer, RetryLimits, request_answer
from coe.measuring.judge import Judge
from coe.measuring.probes.constraints import meets
from coe.measuring.probes.probes import Probe
from coe.measuring.sandbox import Sandbox
from coe.planning import ANSWER_FIELDS
from coe.recipes.final_answers.answers import final_answer, without_reasoning
from coe.recipes.final_answers.programs import program_of
from coe.recipes.judge import GRADE_TOKENS, MAX_GRADE, MAX_GRADED_CHARACTERS, grade_in
from coe.recipes.writing.request import cut
from coe.records.record import RecipeCall
from coe.registry import ExpertSpec, RecipeSpec


@dataclass(frozen=True, slots=True)
class Cell:
    """One expert on one probe. `key` is the digest of all the score depends on; `score` is None where `error` is set.

    `answer` is the normalized form of the answer, as serving compares it (`final_answer`; None if it was cut off),
    `note` why code failed its tests, and `consistent` False when the judge's two grades contradict each other. `code`
    is the error's machine-readable code. For the arm of a recipe, tokens are the sum over its `calls`. `text` is kept
    for answers that a judge of a cascade grades, cut as the judge gets it.
    """

    key: str
    prompt_id: str
    expert: str
    score: float | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    latency_ms: float | None = None
    answer: str | None = None
    output_chars: int | None = None
    finish_reason: str | None = None
    consistent: bool = True
    note: str = ""
    code: str = ""
    error: str = ""
    calls: tuple[RecipeCall, ...] = ()
    text: str | None = None

    @property
    def cut(self) -> bool:
        """True if the answer ran out of tokens."""
        return self.finish_reason == CUT_REASON

    @classmethod
    def of_line(cls, line: bytes) -> Cell:
        """A line of the journal."""
        fields = orjson.loads(line)
        calls = tuple(RecipeCall(**call) for call in fields.pop("calls", ()))
        return cls(**fields, calls=calls)


class Journal:
    """The journal of one run: `scored` and `failed` hold the known cells by key; `append` adds one, on disk first.

    Raises DataError when a line is not a cell, or another run has the journal open. An incomplete last line is dropped.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.scored: dict[str, Cell] = {}
        self.failed: dict[str, Cell] = {}
        self._file: IO[bytes] | None = None

    def __enter__(self) -> Journal:
        self._file = self._path.open("ab")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._file.truncate(self._read())
        except BlockingIOError:
            self._file.close()
            message = f"{self._path}: another run is writing here; wait for its end, or choose another folder"
            raise DataError(message) from None
        except BaseException:
            self._file.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._file:
            self._file.close()

    def append(self, cell: Cell) -> None:
        """Add a cell and flush it, so that it survives the end of this process."""
        assert self._file is not None
        self._file.write(orjson.dumps(asdict(cell), option=orjson.OPT_APPEND_NEWLINE))
        self._file.flush()
        self._note(cell)

    def _read(self) -> int:
        """Read all complete lines; returns their size in bytes."""
        whole = 0
        with self._path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):
                    break
                whole += len(line)
                try:
                    self._note(Cell.of_line(line))
                except (orjson.JSONDecodeError, TypeError, AttributeError) as error:
                    message = f"{self._path}:{number}: not a line of the journal ({error})"
                    remedy = "delete it and its probe is requested again, or delete the file of another version of CoE"
                    raise DataError(f"{message}; {remedy}") from None
        return whole

    def _note(self, cell: Cell) -> None:
        if cell.score is None:
            self.failed[cell.key] = cell
        else:
            self.scored[cell.key] = cell
            self.failed.pop(cell.key, None)


MAX_CONSECUTIVE_FAILURES = 10
"""Probes that an expert fails in a row, each after all retries, before the rest are left for the next run."""
_SCORE_FIELDS = {"name", *ANSWER_FIELDS}


def cell_keys(probes: Iterable[Probe], spec: ExpertSpec, judge: ExpertSpec | None) -> list[str]:
    """Return a digest for every probe of all that its score depends on: the probe, the expert's declaration, and any
    judge."""
    return _keys(probes, declared_fields(spec), judge)


def recipe_keys(
    probes: Iterable[Probe], recipe: RecipeSpec, members: Sequence[ExpertSpec], judge: ExpertSpec | None
) -> list[str]:
    """Return the digests for a chain or fuse, whose score depends on its steps, its instruction and all its members."""
    rooms = [member.context_length for member in members]
    answering = [
        recipe.name,
        recipe.steps,
        recipe.writing_digest,
        [declared_fields(member) for member in members],
        rooms,
    ]
    return _keys(probes, orjson.dumps(answering).decode(), judge)


def _keys(probes: Iterable[Probe], answering: str, judge: ExpertSpec | None) -> list[str]:
    judging = declared_fields(judge) if judge else ""
    parts = [[probe.digest, answering, judging if probe.checker == "judge" else ""] for probe in probes]
    return [hashlib.sha256(orjson.dumps(part)).hexdigest()[:32] for part in parts]


def declared_fields(spec: ExpertSpec) -> str:
    """Return the settings of an expert that its answers depend on, as JSON."""
    return orjson.dumps(spec.model_dump(mode="json", include=_SCORE_FIELDS), option=orjson.OPT_SORT_KEYS).decode()


class StopScoring(Exception):
    """The expert must not be called again in this run. The current probe stays open for a later run."""


@dataclass(frozen=True, slots=True)
class ExpertColumn:
    """One expert, or recipe, and its missing probes, by the key of their cell."""

    expert: Expert
    missing: Mapping[str, Probe]


@dataclass(frozen=True, slots=True)
class ScoringRun:
    """State that all columns share. `report` prints a line, `advance` takes an expert's name after each finished
    probe."""

    journal: Journal
    sandbox: Sandbox
    judge: Judge | None
    limits: RetryLimits
    concurrency: int
    report: Callable[[str], None]
    advance: Callable[[str], None]
    kept: frozenset[str] = frozenset()
    """Experts whose answers are kept as text."""
    hold: Callable[[Probe], AbstractContextManager[object]] = nullcontext
    """Entered while a probe is scored: reserves its verdicts before the answer is requested."""


async def score_columns(columns: Sequence[ExpertColumn], run: ScoringRun) -> None:
    """Score all missing probes, every expert at once, with at most `concurrency` probes in flight at each."""
    async with asyncio.TaskGroup() as tasks:
        for column in columns:
            queue = _WorkQueue(iter(column.missing.items()))
            for _ in range(min(run.concurrency, len(column.missing))):
                tasks.create_task(_score_queue(column.expert, queue, run))


@dataclass(slots=True)
class _WorkQueue:
    """The probes that one expert's workers share; `failures` counts those failed in a row."""

    remaining: Iterator[tuple[str, Probe]]
    is_reported: bool = False
    failures: int = 0


async def _score_queue(expert: Expert, queue: _WorkQueue, run: ScoringRun) -> None:
    while (item := next(queue.remaining, None)) is not None:
        key, probe = item
        blank = Cell(key, probe.prompt_id, expert.name)
        try:
            with run.hold(probe):
                cell = await _score(probe, expert, blank, run)
            queue.failures = 0
        except StopScoring:
            return
        except RequestError as error:
            cell = replace(blank, code=error.code, error=str(error))
            _note_failure(cell, queue, run, is_outage=isinstance(error, ExpertError) and error.retryable)
        run.journal.append(cell)
        run.advance(expert.name)


def _note_failure(cell: Cell, queue: _WorkQueue, run: ScoringRun, *, is_outage: bool) -> None:
    """Report the first failure at once. Stop after repeated outages, but not where an expert rejects single probes."""
    if not queue.is_reported:
        queue.is_reported = True
        run.report(f"{cell.expert}: probe {cell.prompt_id} has no score: {cell.error}")
    queue.failures += is_outage
    if queue.failures == MAX_CONSECUTIVE_FAILURES:
        queue.remaining = iter(())
        run.report(
            f"{cell.expert}: failed {MAX_CONSECUTIVE_FAILURES} probes in a row; the rest are left for the next run"
        )


async def _score(probe: Probe, expert: Expert, blank: Cell, run: ScoringRun) -> Cell:
    """Score one probe. Raises a RequestError where the expert, or the judge, gave no usable answer."""
    limit = GRADE_TOKENS if probe.checker == "grade" else None
    answer = await request_answer(expert, probe.messages, limits=run.limits, max_tokens=limit)
    cell = replace(
        blank,
        input_tokens=answer.input_tokens,
        output_tokens=answer.output_tokens,
        latency_ms=answer.latency_ms,
        output_chars=len(answer.text),
        finish_reason=answer.finish_reason,
        answer=None if answer.cut else final_answer(answer.text),
        calls=answer.calls,
        text=cut(without_reasoning(answer.text), MAX_GRADED_CHARACTERS) if expert.name in run.kept else None,
    )
    if probe.checker == "grade":
        grade = None if answer.cut else grade_in(answer.text)
        return replace(cell, answer=grade, score=0.0 if grade is None else int(grade) / MAX_GRADE)
    if probe.checker == "code":
        assert probe.tests is not None
        verdict = await run.sandbox.run(program_of(answer.text), probe.tests)
        return replace(cell, score=float(verdict.passed), note=verdict.why)
    if probe.checker == "judge":
        return await _judged(probe, answer, cell, run.judge)
    return replace(cell, score=checked(probe, answer.text))


async def _judged(probe: Probe, answer: ProbeAnswer, cell: Cell, judge: Judge | None) -> Cell:
    assert judge is not None, "probes that need a judge are refused where there is none"
    try:
        judgement = await judge.score(probe.prompt, answer.text, reference=probe.reference)
    except (ExpertError, InvalidRequest) as error:
        error.args = (f"the judge failed: {error}",)
        raise
    return replace(cell, score=judgement.score, consistent=judgement.consistent)


def checked(probe: Probe, answer: str) -> float:
    """Return the score of an answer, without its reasoning, by a checker that is a pure function."""
    if probe.checker == "constraints":
        assert probe.constraints is not None
        return meets(answer, probe.constraints)
    assert probe.reference is not None
    text = without_reasoning(answer)
    if probe.checker == "numeric":
        return checkers.numeric(text, probe.reference, tolerance=probe.tolerance)
    plain = {
        "exact": checkers.exact,
        "choice": checkers.choice,
        "contains": checkers.contains,
        "json": checkers.same_json,
    }
    return plain[probe.checker](text, probe.reference)
