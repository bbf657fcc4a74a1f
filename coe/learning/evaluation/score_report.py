"""Reports a scoring run in numbers: scores by category, missing scores and their errors, tokens and latency."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import mean, median
from typing import Any

from coe.learning.evaluation.journal import Cell, Journal
from coe.learning.evaluation.probes import Probe

Keys = Mapping[str, Sequence[str]]
"""By expert: the key of each probe's cell, in the probes' order."""


def score_report(probes: Sequence[Probe], keys: Keys, journal: Journal, *, reused: Mapping[str, int]) -> dict[str, Any]:
    """`{probes, missing, experts: {name: {...}}}`, JSON-able. `reused` counts scores of earlier runs."""
    experts = {name: _column(probes, column, journal) | {"reused": reused[name]} for name, column in keys.items()}
    return {
        "probes": len(probes),
        "missing": sum(column["missing"] for column in experts.values()),
        "experts": experts,
    }


def _column(probes: Sequence[Probe], keys: Sequence[str], journal: Journal) -> dict[str, Any]:
    found = [(probe, journal.scored[key]) for probe, key in zip(probes, keys, strict=True) if key in journal.scored]
    failed = [journal.failed[key] for key in keys if key in journal.failed]
    cells = [cell for _, cell in found]
    return {
        "scored": len(cells),
        "missing": len(keys) - len(cells),
        "mean": _mean([cell.score for cell in cells]),
        "categories": _by_category(found),
        "latency_ms_p50": _median([cell.latency_ms for cell in cells]),
        "input_tokens": sum(cell.input_tokens or 0 for cell in cells),
        "output_tokens": sum(cell.output_tokens or 0 for cell in cells),
        "cut": sum(cell.cut for cell in cells),
        "inconsistent": sum(not cell.consistent for cell in cells),
        "errors": dict(Counter(cell.code for cell in failed)),
        "first_error": failed[0].error if failed else None,
    }


def _by_category(found: Sequence[tuple[Probe, Cell]]) -> dict[str, dict[str, Any]]:
    groups: dict[str, list[float | None]] = {}
    for probe, cell in found:
        groups.setdefault(probe.category, []).append(cell.score)
    return {category: {"n": len(scores), "mean": _mean(scores)} for category, scores in sorted(groups.items())}


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return round(mean(known), 4) if known else None


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return round(median(known), 1) if known else None
