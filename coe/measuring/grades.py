"""Grades that the judge of a cascade gives to recorded answers: its requests, and the table of the grades.

`coe score --recipe` stores the answers of all members except those of the last step, and sends each to the judge with
the same prompt as in serving. `coe plan` fits from the grades when an answer is accepted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import orjson
from numpy.typing import NDArray

from coe.errors import DataError
from coe.measuring.probes.probes import Probe
from coe.measuring.quality import Quality, column_means
from coe.measuring.scoring_run import Cell, declared_fields
from coe.measuring.tables import optional_table, replace_parquet
from coe.planning import MEASURES
from coe.recipes.judge import GRADE_TOKENS, MAX_GRADE, grading_fields
from coe.registry import ExpertSpec, Prices

GRADES = "grades"
_COLUMNS = dict.fromkeys(("benchmark", "prompt_id", "model", "judge"), "string") | {
    "grade": "float64",
    "input_tokens": "int64",
    "output_tokens": "int64",
    "latency_ms": "float64",
    "cost": "float64",
}


def grading_probe(probe: Probe, answer: Cell, judge: ExpertSpec) -> Probe | None:
    """Return the request for the grade of an answer; None if serving would not have it graded: cut off, or empty.

    The digest of the request is the key of its cell.
    """
    if answer.cut or not answer.text:
        return None
    messages = tuple(grading_fields({"messages": probe.messages}, answer.text)["messages"])
    digest = hashlib.sha256(orjson.dumps([messages, declared_fields(judge), GRADE_TOKENS])).hexdigest()[:32]
    return replace(probe, messages=messages, checker="grade", reference=None, tests=None, digest=digest)


GradedAnswer = tuple[str, str, str]
"""The prompt, the member that answered, and the judge."""


def write_grades(
    folder: Path, *, benchmark: str, cells: Mapping[GradedAnswer, Cell | None], prices: Mapping[str, Prices]
) -> None:
    """Write grades.parquet from the judges' cells, None for an answer that is not graded; without cells, remove it."""
    rows = []
    for (prompt_id, member, judge), cell in cells.items():
        one = cell or Cell("", prompt_id, member)
        grade = None if one.answer is None else float(one.answer)
        used = one.input_tokens, one.output_tokens
        rows.append(
            (benchmark, prompt_id, member, judge, grade, *used, one.latency_ms, prices[judge].known_cost(*used))
        )
    replace_parquet(folder / f"{GRADES}.parquet", _COLUMNS, rows)


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

    Raises DataError for a missing column and for grades outside 0 to 10.
    """
    needed = ("prompt_id", "model", "judge", "grade")
    table = optional_table(folder, GRADES, needed=needed, benchmark=quality.benchmark) if judges else None
    if table is None:
        return {}
    grades = np.array(table.numbers("grade"))
    if wrong := int(((grades < 0) | (grades > MAX_GRADE)).sum()):
        raise DataError(f"{table.path}: {wrong} grades are not in 0 to {MAX_GRADE}")
    uses = {name: np.array(table.numbers(name)) for name in MEASURES}
    owners, covered = np.array(table.texts("judge"), dtype=object), quality.cells(table)
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
