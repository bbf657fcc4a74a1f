"""Reads and writes the recorded answers of experts next to their scores: which are equal, and how long they are.

`coe score` writes answers.parquet. Public data may have output_chars in place of output_tokens. Answers are equal when
their normalized forms are equal: such as numbers by value.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from coe.errors import DataError
from coe.measuring.quality import Quality, column_means, filled
from coe.measuring.scoring_run import Cell
from coe.measuring.tables import Table, needed_table, optional_table, write_parquet
from coe.recipes.agreement import answer_classes
from coe.recipes.final_answers.answers import final_answer
from coe.recipes.final_answers.wording import MAX_READ_CHARACTERS, MAX_SHORT_WORDS
from coe.registry import Prices

CHARACTERS_PER_TOKEN = 4.0
"""Converts `output_chars` into tokens."""


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

    Rows of other benchmarks and other models are ignored. Raises DataError for a missing column, answers to unknown
    prompts, two rows for one prompt and model, negative lengths, or no answer at all.
    """
    needed = ("prompt_id", "model", "answer")
    table = optional_table(folder, "answers", needed=needed, benchmark=quality.benchmark)
    if table is None:
        return None
    if not {"output_tokens", "output_chars"} & table.columns.keys():
        present = ", ".join(table.columns)
        raise DataError(f"{table.path}: lacks the column output_tokens (or output_chars); it has {present}")
    _check_prompts(table, folder, quality)
    found, rows, columns = _cells(table, quality)
    answers = table.texts("answer")
    shape = (len(quality.prompts), len(quality.models))
    recorded = np.zeros(shape, dtype=bool)
    recorded[rows, columns] = True
    texts = np.full(shape, None, dtype=object)
    texts[rows, columns] = _normalized([answers[row] for row in found])
    tokens = np.full(shape, np.nan)
    tokens[rows, columns] = _tokens(table)[found]
    if not np.isfinite(tokens).any():
        raise DataError(f"{table.path}: no answer has a length; fill in output_tokens or output_chars")
    return RecordedAnswers(
        classes=np.array([answer_classes(row) for row in texts.tolist()], dtype=np.int64),
        tokens=filled(tokens, column_means(tokens.ravel(), np.nan)),
        recorded=recorded,
    )


def _tokens(table: Table) -> NDArray[np.float64]:
    """Return the output tokens of each row, estimated from the characters where they are missing, else NaN."""
    counts = {name: np.array(table.numbers(name)) for name in ("output_tokens", "output_chars")}
    for name, values in counts.items():
        if wrong := int((values < 0).sum()):
            raise DataError(f"{table.path}: {wrong} {name} are below 0; leave them empty")
    tokens, characters = counts.values()
    return np.where(np.isfinite(tokens), tokens, characters / CHARACTERS_PER_TOKEN)


def _check_prompts(table: Table, folder: Path, quality: Quality) -> None:
    """Raise DataError for answers to prompts that the prompts' file does not have."""
    prompts = needed_table(folder, "prompts", needed=("prompt_id",)).where("benchmark", quality.benchmark)
    known = set(prompts.texts("prompt_id"))
    if strays := [prompt_id for prompt_id in table.texts("prompt_id") if prompt_id not in known]:
        raise DataError(
            f"{table.path}: {len(strays)} of {table.length} answers belong to no prompt, {strays[0]!r} for one; "
            f"compare the prompt_id with {prompts.path.name}"
        )


def _cells(table: Table, quality: Quality) -> NDArray[np.int64]:
    """Return the rows of the table that `quality` covers, with their prompts and models by index, shape (3, n_rows)."""
    cells = quality.cells(table)
    known = Counter(zip(*cells[1:].tolist(), strict=True))
    if twice := [cell for cell, count in known.items() if count > 1]:
        prompt, model = twice[0]
        raise DataError(
            f"{table.path}: {known.total() - len(known)} answers occur twice, that of {quality.models[model]} to "
            f"prompt {quality.prompt_ids[prompt]!r} for one; keep one row for each prompt and model"
        )
    if not cells.size:
        raise DataError(f"{table.path}: no answer belongs to a scored prompt and model; compare with the scores' file")
    return cells


def _normalized(answers: Sequence[str]) -> list[str | None]:
    """Return the form by which answers are compared, None for those without a readable one.

    A text that is too long for a final answer is compared as it is, because the data's source took it as the answer.
    """
    forms = {text: final_answer(text) or _long_form(text) for text in set(answers)}
    return [forms[text] for text in answers]


def _long_form(text: str) -> str | None:
    words = text[:MAX_READ_CHARACTERS].split()
    return " ".join(words) if len(words) > MAX_SHORT_WORDS else None


ANSWERS = "answers.parquet"
_COLUMNS = dict.fromkeys(("benchmark", "prompt_id", "model", "answer"), "string") | {
    "input_tokens": "int64",
    "output_tokens": "int64",
    "output_chars": "int64",
    "latency_ms": "float64",
    "cost": "float64",
}


def write_answers(
    folder: Path, *, benchmark: str, cells: Iterable[tuple[str, str, Cell]], prices: Mapping[str, Prices]
) -> None:
    """Write answers.parquet, a row for each scored answer, from its prompt, its model and its cell.

    `benchmark` names the probe set. The cost is in US dollars at `prices`.
    """
    rows = (
        (
            *(benchmark, prompt_id, model, one.answer, one.input_tokens, one.output_tokens, one.output_chars),
            *(one.latency_ms, prices[model].known_cost(one.input_tokens, one.output_tokens)),
        )
        for prompt_id, model, one in cells
    )
    write_parquet(folder / ANSWERS, _COLUMNS, rows)
