"""Reads and writes the measured answers of chains and fuses: their scores, and the tokens and time of every call.

`coe score --recipe` writes recipe_calls.parquet, a row for each call. `coe plan` prices the calls at the declared
prices of the members.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from coe.errors import DataError
from coe.measuring.quality import Quality
from coe.measuring.scoring_run import Cell
from coe.measuring.tables import Table, optional_table, replace_parquet
from coe.planning import MEASURES
from coe.registry import ArmSpec, Prices

CALLS = "recipe_calls"
_COLUMNS = dict.fromkeys(("benchmark", "prompt_id", "arm", "writing"), "string") | {
    "score": "float32",
    "step": "int64",
    "member": "string",
    "input_tokens": "int64",
    "output_tokens": "int64",
    "latency_ms": "float64",
    "cost": "float64",
}
_NEEDED = ("prompt_id", "arm", "writing", "score", "step", "member")


def write_recipe_answers(
    folder: Path, *, benchmark: str, answers: Iterable[tuple[str, str, str, Cell]], prices: Mapping[str, Prices]
) -> None:
    """Write recipe_calls.parquet from prompt, arm, `RecipeSpec.writing_digest` and cell of each answer.

    Without answers, remove the file. `cost` is in US dollars at `prices`.
    """
    rows = [
        (
            *(benchmark, prompt_id, arm, writing, one.score, call.step, call.expert),
            *(call.input_tokens, call.output_tokens, call.ms),
            prices[call.expert].known_cost(call.input_tokens, call.output_tokens),
        )
        for prompt_id, arm, writing, one in answers
        for call in one.calls
    ]
    replace_parquet(folder / f"{CALLS}.parquet", _COLUMNS, rows)


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
    DataError for a missing column and for scores outside 0 to 1.
    """
    table = optional_table(folder, CALLS, needed=_NEEDED, benchmark=quality.benchmark) if arms else None
    if table is None:
        return {}
    scores = np.array(table.numbers("score"))
    if wrong := int((~((scores >= 0) & (scores <= 1))).sum()):
        raise DataError(f"{table.path}: {wrong} scores are not in 0 to 1; scale them")
    measures = np.column_stack([table.numbers(name) for name in MEASURES])
    calls = _calls(table)
    found = {}
    for arm in arms:
        planned = tuple((str(step), name) for step, names in enumerate(arm.steps) for name in names)
        rows = [
            calls.get((prompt_id, arm.name, arm.writing_digest), {}).get(planned, [])
            for prompt_id in quality.prompt_ids
        ]
        if any(rows):
            found[arm.name] = _aligned(rows, scores, measures, len(planned))
    return found


def _calls(table: Table) -> dict[tuple[str, str, str], dict[tuple[tuple[str, str], ...], list[int]]]:
    """Return the rows of each answer, by prompt, arm and instruction, and by the steps and members of its calls."""
    keys = zip(table.texts("prompt_id"), table.texts("arm"), table.texts("writing"), strict=True)
    by_answer: dict[tuple[str, str, str], list[int]] = {}
    for row, key in enumerate(keys):
        by_answer.setdefault(key, []).append(row)
    steps, members = [f"{step:g}" for step in table.numbers("step")], table.texts("member")
    return {key: {tuple((steps[row], members[row]) for row in rows): rows} for key, rows in by_answer.items()}


def _aligned(
    rows: Sequence[Sequence[int]], scores: NDArray[np.float64], measures: NDArray[np.float64], n_calls: int
) -> MeasuredArm:
    """Return the answers in the order of the prompts; `rows` are those of each prompt's calls, empty without any."""
    filled = [prompt for prompt, one in enumerate(rows) if one]
    aligned = np.full(len(rows), np.nan)
    aligned[filled] = [scores[rows[prompt][0]] for prompt in filled]
    uses = np.full((len(rows), n_calls, len(MEASURES)), np.nan)
    uses[filled] = [measures[rows[prompt]] for prompt in filled]
    return MeasuredArm(aligned, {name: uses[..., number] for number, name in enumerate(MEASURES)})
