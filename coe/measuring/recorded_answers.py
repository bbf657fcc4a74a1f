"""Reads recorded calls next to the scores: answers of experts, calls of recipes, and grades of judges.

`coe score` writes a parquet file for each, and `coe plan` prices and fits recipes on them at the declared prices.
Public data may have answers with output_chars in place of output_tokens. Answers are equal when their normalized forms
are equal: such as numbers by value.

Requests one answer from one expert or recipe, with retries: returns its text, or raises the error that remains.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from coe.core import Call, Expert
from coe.errors import DataError, ExpertError, ExpertInvalidResponse, ExpertRejected, ExpertUnavailable
from coe.measuring.quality import Quality, column_means, filled
from coe.measuring.tables import optional_table
from coe.planning.uses import MEASURES
from coe.recipes.agreement import answer_classes
from coe.recipes.final_answers import MAX_READ_CHARACTERS, MAX_SHORT_WORDS, final_answer
from coe.records.record import RecipeCall
from coe.registry import ArmSpec
from coe.usage import RecipeLog

_HEADERS = {"x-coe-retrieval": "off", "x-coe-purpose": "score", "x-coe-cache": "off"}
"""Headers of requests through the gateway: no passages, no answer cache, and not counted as a user's request."""

_ANSWERED = ("answered", "unreadable", "unverified")
_FINAL = ("rejected", "unsupported")
"""Outcomes of a member that a retry cannot change."""


@dataclass(frozen=True, slots=True)
class RetryLimits:
    """Timeout of a whole answer, number of attempts, and the first pause between them, which doubles."""

    answer_seconds: float = 600.0
    attempts: int = 4
    pause_seconds: float = 0.5


@dataclass(frozen=True, slots=True)
class ProbeAnswer:
    """An expert's answer. `latency_ms` is that of the last attempt alone. `calls` are those of a recipe."""

    text: str = field(repr=False)
    input_tokens: int | None
    output_tokens: int | None
    latency_ms: float
    finish_reason: str | None
    calls: tuple[RecipeCall, ...] = ()


async def request_answer(
    expert: Expert, messages: Sequence[Mapping[str, Any]], *, limits: RetryLimits, max_tokens: int | None = None
) -> ProbeAnswer:
    """Request an answer, of at most `max_tokens`, until there is one. Raises the last ExpertError, at once where a
    retry cannot help."""
    # not streamed: some servers report token counts only then
    fields: dict[str, Any] = {"messages": list(messages), "stream": False}
    if max_tokens is not None:
        fields["max_tokens"] = max_tokens
    for attempt in range(1, limits.attempts + 1):
        try:
            return await _request_once(expert, fields, limits.answer_seconds)
        except ExpertError as error:
            if not error.retryable or attempt == limits.attempts:
                raise
        await asyncio.sleep(limits.pause_seconds * 2 ** (attempt - 1))
    raise AssertionError("RetryLimits allow at least one attempt")


async def _request_once(expert: Expert, fields: Mapping[str, Any], seconds: float) -> ProbeAnswer:
    began, log = time.perf_counter(), RecipeLog()
    optional = frozenset(("max_tokens",)) & fields.keys()
    call = Call(fields, False, seconds, seconds, headers=_HEADERS, recipe_log=log, optional=optional)
    reply = await expert.stream(call)
    try:
        body = b"".join([chunk async for chunk in reply.chunks()])
    finally:
        await reply.aclose()
    latency = (time.perf_counter() - began) * 1000
    text, finish_reason = _first_choice(body, expert.name)
    usage, calls = reply.usage, _uses(log, expert.name)
    return ProbeAnswer(text, usage.input_tokens, usage.output_tokens, round(latency, 1), finish_reason, calls)


def _uses(log: RecipeLog, recipe: str) -> tuple[RecipeCall, ...]:
    """The calls of a recipe, none of an expert. Raises an ExpertError if a member gave no answer: the score would be
    that of another recipe."""
    failed = next((call for call in log.calls if call.outcome not in _ANSWERED), None)
    if failed is not None or log.stop not in ("", "last_step"):
        why = log.stop if failed is None else f"its member {failed.expert!r} gave no answer: {failed.outcome}"
        message = f"the answer of {recipe!r} is incomplete ({why})"
        if failed is not None and failed.outcome in _FINAL:
            raise ExpertRejected(message, expert=recipe, status=400)
        raise ExpertUnavailable(message, expert=recipe)
    return tuple(map(RecipeCall.of, log.calls))


def _first_choice(body: bytes, expert: str) -> tuple[str, str | None]:
    """The text of a chat completion and its finish reason. A message without content is an empty answer."""
    try:
        choice = orjson.loads(body)["choices"][0]
        content = choice["message"].get("content") or ""
        if not isinstance(content, str):
            raise TypeError("content is not text")
    except (orjson.JSONDecodeError, LookupError, TypeError, AttributeError) as error:
        raise ExpertInvalidResponse(
            f"expert {expert!r} answered no chat completion ({error!r})", expert=expert
        ) from None
    reason = choice.get("finish_reason")
    return content, reason if isinstance(reason, str) else None


CHARACTERS_PER_TOKEN = 4.0
"""Converts `output_chars` into tokens."""
ANSWERS, CALLS, GRADES = "answers", "recipe_calls", "grades"

# ------------------------------------------------------------------------------------------------------------- answers


@dataclass(frozen=True, slots=True, eq=False)
class RecordedAnswers:
    """The answers of the models of a `Quality` to its prompts; all arrays have shape (n_prompts, n_models).

    Equal numbers in a row of `classes` are equal answers, -1 where there is none. `tokens` are output tokens; where a
    count is missing, the model's mean stands in (or the mean of all models). `recorded` is True where the table has a
    row, also one whose answer could not be read.
    """

    classes: NDArray[np.int64]
    tokens: NDArray[np.float64]
    recorded: NDArray[np.bool_]


def read_answers(folder: Path, quality: Quality) -> RecordedAnswers | None:
    """Read `answers` (.parquet, .jsonl or .csv), aligned with `quality`; None where the folder has no such file.

    Rows of other benchmarks, prompts and models are ignored. Raises DataError for a missing column, or no length.
    """
    table = optional_table(folder, ANSWERS, needed=("prompt_id", "model", "answer"), benchmark=quality.benchmark)
    if table is None:
        return None
    rows, *cells = table.cells(quality.prompt_ids, quality.models)
    prompts, models = cells
    answers = table.texts("answer")
    tokens, characters = (np.array(table.numbers(name)) for name in ("output_tokens", "output_chars"))
    lengths = np.where(np.isfinite(tokens), tokens, characters / CHARACTERS_PER_TOKEN)[rows]
    if not np.isfinite(lengths).any():
        raise DataError(f"{table.path}: no answer has a length; fill in output_tokens or output_chars")
    shape = (len(quality.prompts), len(quality.models))
    recorded, texts, sizes = np.zeros(shape, dtype=bool), np.full(shape, None, dtype=object), np.full(shape, np.nan)
    recorded[prompts, models], sizes[prompts, models] = True, lengths
    forms = {text: final_answer(text) or _long_form(text) for text in {answers[row] for row in rows}}
    texts[prompts, models] = [forms[answers[row]] for row in rows]
    return RecordedAnswers(
        classes=np.array([answer_classes(row) for row in texts.tolist()], dtype=np.int64),
        tokens=filled(sizes, column_means(sizes.ravel(), np.nan)),
        recorded=recorded,
    )


def _long_form(text: str) -> str | None:
    """The form of a text that is too long for a final answer: the data's source took it as the answer, as it is."""
    words = text[:MAX_READ_CHARACTERS].split()
    return " ".join(words) if len(words) > MAX_SHORT_WORDS else None


# ------------------------------------------------------------------------------------------------------------- recipes


@dataclass(frozen=True, slots=True, eq=False)
class MeasuredArm:
    """The measured answers of an arm to the prompts of a `Quality`.

    `scores` has shape (n_prompts,), NaN where nothing was measured. `uses` maps each of MEASURES to values of shape
    (n_prompts, n_calls), NaN where unknown.
    """

    scores: NDArray[np.float64]
    uses: Mapping[str, NDArray[np.float64]]


def read_recipe_answers(folder: Path, quality: Quality, arms: Sequence[ArmSpec]) -> dict[str, MeasuredArm]:
    """Read `recipe_calls` (.parquet, .jsonl or .csv), aligned with `quality`; empty without such a file.

    Answers by other members, in other steps or by another instruction than those of `arms` are ignored. Raises
    DataError for a missing column.
    """
    needed = ("prompt_id", "arm", "writing", "score", "step", "member")
    table = optional_table(folder, CALLS, needed=needed, benchmark=quality.benchmark) if arms else None
    if table is None:
        return {}
    scores = np.array(table.numbers("score"))
    measures = np.column_stack([table.numbers(name) for name in MEASURES])
    steps, members = table.numbers("step"), table.texts("member")
    rows_of: dict[tuple[str, str, str], list[int]] = {}
    for row, key in enumerate(zip(table.texts("prompt_id"), table.texts("arm"), table.texts("writing"), strict=True)):
        rows_of.setdefault(key, []).append(row)
    found = {}
    for arm in arms:
        planned = [(float(step), name) for step, names in enumerate(arm.steps) for name in names]
        values, uses = np.full(len(quality.prompts), np.nan), np.full((len(quality.prompts), len(planned), 3), np.nan)
        for prompt, prompt_id in enumerate(quality.prompt_ids):
            rows = rows_of.get((prompt_id, arm.name, arm.writing_digest), [])
            if rows and [(steps[row], members[row]) for row in rows] == planned:
                values[prompt], uses[prompt] = scores[rows[0]], measures[rows]
        if np.isfinite(values).any():
            found[arm.name] = MeasuredArm(values, {name: uses[..., at] for at, name in enumerate(MEASURES)})
    return found


# -------------------------------------------------------------------------------------------------------------- grades


@dataclass(frozen=True, slots=True, eq=False)
class Grades:
    """The grades of one judge for the answers of the models of a `Quality`.

    `grades` and `recorded` have shape (n_prompts, n_models): a recorded answer without a grade is NaN. `uses` are the
    mean tokens and latency of a call, by MEASURES; NaN where unknown.
    """

    grades: NDArray[np.float64]
    recorded: NDArray[np.bool_]
    uses: Mapping[str, float]


def read_grades(folder: Path, quality: Quality, judges: Sequence[str]) -> dict[str, Grades]:
    """Read `grades` (.parquet, .jsonl or .csv) by judge, aligned with `quality`; empty without such a file.

    Raises DataError for a missing column.
    """
    needed = ("prompt_id", "model", "judge", "grade")
    table = optional_table(folder, GRADES, needed=needed, benchmark=quality.benchmark) if judges else None
    if table is None:
        return {}
    grades = np.array(table.numbers("grade"))
    uses = {name: np.array(table.numbers(name)) for name in MEASURES}
    owners, covered = np.array(table.texts("judge"), dtype=object), table.cells(quality.prompt_ids, quality.models)
    found = {}
    for judge in judges:
        rows, prompts, models = covered[:, owners[covered[0]] == judge]
        if not len(rows):
            continue
        shape = (len(quality.prompts), len(quality.models))
        aligned, recorded = np.full(shape, np.nan), np.zeros(shape, dtype=bool)
        aligned[prompts, models], recorded[prompts, models] = grades[rows], True
        means = {name: float(column_means(values[rows], np.nan)) for name, values in uses.items()}
        found[judge] = Grades(aligned, recorded, means)
    return found
