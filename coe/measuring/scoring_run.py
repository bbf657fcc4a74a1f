"""Scores experts on probes: requests answers, checks them and appends each result to the journal of the run.

All experts run at once, each with its own queue of probes. An expert that fails many probes in a row is skipped until
the next run. The journal has one JSON line per probe and expert, so that a stopped run can continue.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import IO, Any

import orjson
from pydantic import TypeAdapter, ValidationError

from coe.core import Expert
from coe.errors import DataError, ExpertError, ExpertInvalidResponse, InvalidRequest, RequestError
from coe.file_lock import file_lock
from coe.measuring import checkers
from coe.measuring.checkers import meets
from coe.measuring.probes import Probe, json_digest
from coe.measuring.recorded_answers import RetryLimits, request_answer
from coe.measuring.sandbox import Sandbox
from coe.planning.plan import ANSWER_FIELDS
from coe.recipes.agreement import GRADE_TOKENS, MAX_GRADE, MAX_GRADED_CHARACTERS, grade_in, grading_fields
from coe.recipes.final_answers import final_answer, program_of, without_reasoning
from coe.recipes.writing import cut
from coe.records.record import RecipeCall
from coe.registry import ExpertSpec, RecipeSpec


@dataclass(frozen=True, slots=True)
class Cell:
    """One expert on one probe. `key` is the digest of all the score depends on; `score` is None where `error` is set.

    `answer` is the normalized form of the answer, as serving compares it (`final_answer`; None if it was cut off) and
    `note` why code failed its tests. `code` is the error's machine-readable code. For the arm of a recipe, tokens are
    the sum over its `calls`. `time` is when it was scored
    (Unix seconds). `text` is kept for answers that a judge of a cascade grades, cut as the judge gets it.
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
    note: str = ""
    code: str = ""
    error: str = ""
    calls: tuple[RecipeCall, ...] = ()
    text: str | None = None
    time: float = 0.0

    @property
    def cut(self) -> bool:
        """True if the answer ran out of tokens."""
        return self.finish_reason == "length"


_CELL = TypeAdapter(Cell)


class Journal:
    """The journal of one run: `scored` and `failed` hold the known cells by key; `append` adds one, on disk first.

    Raises DataError when a line is not a cell, or another run has the journal open. An incomplete last line is dropped.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.scored: dict[str, Cell] = {}
        self.failed: dict[str, Cell] = {}
        self._file: IO[bytes] | None = None
        self._open = ExitStack()

    def __enter__(self) -> Journal:
        held = f"{self._path}: another run is writing here; wait for its end, or choose another folder"
        with ExitStack() as stack:
            stack.enter_context(file_lock(self._path.with_suffix(".lock"), held=lambda _: DataError(held)))
            self._file = stack.enter_context(self._path.open("ab"))
            self._file.truncate(self._read())
            self._open = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

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
                    self._note(_CELL.validate_json(line))
                except ValidationError as error:
                    message = f"{self._path}:{number}: not a line of the journal ({error.errors()[0]['msg']})"
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
    answered_by = [[declared_fields(member), member.context_length] for member in members]
    return _keys(probes, [recipe.name, recipe.steps, recipe.writing_digest, answered_by], judge)


def _keys(probes: Iterable[Probe], answering: Any, judge: ExpertSpec | None) -> list[str]:
    judging = declared_fields(judge) if judge else ""
    parts = [[probe.digest, answering, judging if probe.checker == "judge" else ""] for probe in probes]
    return [json_digest(part) for part in parts]


def declared_fields(spec: ExpertSpec) -> str:
    """Return the settings of an expert that its answers depend on, as JSON."""
    return orjson.dumps(spec.model_dump(mode="json", include=_SCORE_FIELDS), option=orjson.OPT_SORT_KEYS).decode()


def judge_messages(probe: Probe, answer: str) -> list[dict[str, Any]]:
    """Return the request for a judge's grade of an answer; it shows the probe's reference where there is one."""
    shown = list(probe.messages)
    if probe.checker == "judge" and probe.reference is not None:
        shown.append({"role": "a right answer, for comparison", "content": probe.reference})
    messages: list[dict[str, Any]] = grading_fields({"messages": shown}, answer)["messages"]
    return messages


def grading_probe(probe: Probe, answer: Cell, judge: ExpertSpec) -> Probe | None:
    """Return the request of a cascade's judge as a probe; None if serving would not have the answer graded: cut off,
    or empty. Its digest is the key of its cell."""
    if answer.cut or not answer.text:
        return None
    messages = tuple(grading_fields({"messages": probe.messages}, answer.text)["messages"])
    digest = json_digest([messages, declared_fields(judge), GRADE_TOKENS])
    return replace(probe, messages=messages, checker="grade", reference=None, tests=None, digest=digest)


class StopScoring(Exception):
    """The expert must not be called again in this run. The current probe stays open for a later run."""


@dataclass(slots=True)
class ExpertColumn:
    """One expert, or recipe, and its missing probes, by the key of their cell. `failures` counts those in a row."""

    expert: Expert
    missing: Mapping[str, Probe]
    failures: int = 0
    is_reported: bool = False


@dataclass(slots=True)
class ScoringRun:
    """State that all columns share. `report` prints a line, `advance` takes an expert's name after each finished
    probe."""

    journal: Journal
    sandbox: Sandbox
    judge: Expert | None
    limits: RetryLimits
    concurrency: int
    report: Callable[[str], None]
    advance: Callable[[str], None]
    kept: frozenset[str] = frozenset()
    """Experts whose answers are kept as text."""
    judging: asyncio.Semaphore = field(init=False)
    """Bounds the requests to the judge, as those to an expert are."""

    def __post_init__(self) -> None:
        self.judging = asyncio.Semaphore(self.concurrency)


async def score_columns(columns: Sequence[ExpertColumn], run: ScoringRun) -> None:
    """Score all missing probes, every expert at once, with at most `concurrency` probes in flight at each."""
    async with asyncio.TaskGroup() as tasks:
        for column in columns:
            queue = iter(column.missing.items())
            for _ in range(min(run.concurrency, len(column.missing))):
                tasks.create_task(_score_queue(column, queue, run))


async def _score_queue(column: ExpertColumn, queue: Iterator[tuple[str, Probe]], run: ScoringRun) -> None:
    """Score the probes of a queue that the workers of a column share, until too many fail in a row."""
    name = column.expert.name
    while column.failures < MAX_CONSECUTIVE_FAILURES and (item := next(queue, None)) is not None:
        key, probe = item
        blank = Cell(key, probe.prompt_id, name, time=time.time())
        try:
            cell = await _score(probe, column.expert, blank, run)
            column.failures = 0
        except StopScoring:
            return
        except RequestError as error:
            cell = replace(blank, code=error.code, error=str(error))
            if not column.is_reported:
                column.is_reported = True
                run.report(f"{name}: probe {probe.prompt_id} has no score: {error}")
            if isinstance(error, ExpertError) and error.retryable:  # an outage, not the rejection of a single probe
                column.failures += 1
                if column.failures == MAX_CONSECUTIVE_FAILURES:
                    run.report(f"{name}: failed {column.failures} probes in a row; the rest are left for the next run")
        run.journal.append(cell)
        run.advance(name)


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
        calls=answer.calls,
    )
    if probe.checker == "grade":
        grade = None if cell.cut else grade_in(answer.text)
        return replace(cell, answer=grade, score=0.0 if grade is None else int(grade) / MAX_GRADE)
    cell = replace(
        cell,
        answer=None if cell.cut else final_answer(answer.text),
        text=cut(without_reasoning(answer.text), MAX_GRADED_CHARACTERS) if expert.name in run.kept else None,
    )
    if probe.checker == "code":
        assert probe.tests is not None
        verdict = await run.sandbox.run(program_of(answer.text), probe.tests)
        return replace(cell, score=float(verdict.passed), note=verdict.why)
    if probe.checker == "judge":
        return replace(cell, score=await _judged(probe, answer.text, run))
    return replace(cell, score=checked(probe, answer.text))


async def _judged(probe: Probe, answer: str, run: ScoringRun) -> float:
    """Return the judge's grade of an answer, 0 to 1. Raises the ExpertError or InvalidRequest of the judge."""
    assert run.judge is not None, "probes that need a judge are refused where there is none"
    try:
        async with run.judging:
            messages = judge_messages(probe, without_reasoning(answer))
            reply = await request_answer(run.judge, messages, limits=run.limits)
        grade = grade_in(reply.text)
        if grade is None:
            name = run.judge.name
            raise ExpertInvalidResponse(f"expert {name!r} gave no grade; a stronger judge may", expert=name)
    except (ExpertError, InvalidRequest) as error:
        error.args = (f"the judge failed: {error}",)
        raise
    return int(grade) / MAX_GRADE


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
