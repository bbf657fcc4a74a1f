"""`coe solve`: solves the plan in use under other budgets, one JSON line in, one out; publishes nothing."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, TextIO

import numpy as np
import orjson
import typer
from numpy.typing import NDArray

from coe.artifacts.store import ArtifactStore
from coe.cli.common import Config, keep_stdout_clean, settings_for
from coe.errors import ArtifactError, CoEError, DataError
from coe.mapping import (
    Budget,
    Problem,
    current_problem,
    planned_quality,
    planned_use,
    read_problem,
    read_published,
    solve,
)
from coe.registry import load
from coe.settings import Settings
from coe.terminal import print_json

Version = Annotated[str | None, typer.Argument(help="[default: the one in use]")]
MAX_LINE_CHARACTERS = 10_000
"""Longer input lines are read in parts."""


def solve_lines(version: Version = None, config: Config = None) -> None:
    """Solve a plan again under other budgets.

    Each line on standard input is a JSON object of budget rows, such as {"memory_gb": 24}, that replace the declared
    budget. Each line on standard output is the plan, or the error.
    """
    keep_stdout_clean()
    settings = settings_for(config)
    store = ArtifactStore(settings.artifacts, "assignment")
    version = version or store.in_use()
    found = None if version is None else _current_problem(settings, version, store.published(version).folder)
    if found is None:
        raise ArtifactError("solve: no plan was made from scores yet; run `coe plan`")
    for answer in answers(_lines(sys.stdin), *found):
        print_json(answer)


def _current_problem(
    settings: Settings, version: str, folder: Path
) -> tuple[Problem, NDArray[np.float64] | None] | None:
    """The problem of the plan under the current experts.yaml, and its traffic; None for a plan without a record."""
    solved = read_problem(folder)
    if solved is None:
        return None
    registry = load(settings.config, environ=settings.environ)
    return current_problem(read_published(folder, version), registry, solved[1])


def answers(lines: Iterable[str], problem: Problem, traffic: NDArray[np.float64] | None) -> Iterator[dict[str, Any]]:
    """{"plan": ...} or {"error": ...} for each line."""
    for line in lines:
        try:
            yield {"plan": _solved(problem, traffic, _budget(line))}
        except CoEError as error:
            yield {"error": str(error)}


def _lines(stream: TextIO) -> Iterator[str]:
    while line := stream.readline(MAX_LINE_CHARACTERS):
        yield line


def _budget(line: str) -> Budget:
    """Raises DataError for a line that is no budget, ConfigError for a limit that is not above 0."""
    known = list(Budget.__dataclass_fields__)
    try:
        rows = orjson.loads(line)
        if not isinstance(rows, dict) or not set(rows) <= set(known):
            raise ValueError
        return Budget(**{row: None if limit is None else float(limit) for row, limit in rows.items()})
    except (TypeError, ValueError):
        raise DataError(f"solve: a line is no JSON object of {', '.join(known)}") from None


def _solved(problem: Problem, traffic: NDArray[np.float64] | None, budget: Budget) -> dict[str, Any]:
    changed = problem.within(**{row: getattr(budget, row) for row in Budget.__dataclass_fields__})
    found = solve(changed, traffic=traffic)
    columns = zip(found.categories, found.choice, found.runner_up, found.margin, strict=True)
    return {
        "budget": budget.rows(),
        "quality": planned_quality(changed, found),
        "used": planned_use(changed, found),
        "hosted": found.hosted,
        "assignment": [
            {"category": category, "expert": expert, "runner_up": second, "margin": margin}
            for category, expert, second, margin in columns
        ],
        "prices": dict(zip(found.experts, found.price.tolist(), strict=True)),
        "duals": dict(found.duals),
    }
