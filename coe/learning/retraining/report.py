"""Writes the report of a plan round: JSON for machines, Markdown and an image for people.

A promoted artifact holds its round's report; `keep_report` stores those of rejected candidates, the newest MAX_REPORTS.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson

from coe.learning.estimation.experience import Experience
from coe.learning.plots import plot_round
from coe.learning.retraining.plan_builder import CurrentPlan
from coe.learning.retraining.plan_round import JudgedPlan
from coe.records.feedback import FEEDBACK_KINDS


def plan_report(
    found: JudgedPlan, current: CurrentPlan, *, experience: Experience, left_out: Mapping[str, int] | None = None
) -> dict[str, Any]:
    """The report of a round, JSON-able: its inputs, the changes, the judgement, and the tenants that are not
    trusted."""
    old, new = current.assignment, found.candidate
    kinds = {kind: int((experience.kind == number).sum()) for number, kind in enumerate(FEEDBACK_KINDS)}
    return {
        "promoted": found.judgement.promote,
        "reason": found.judgement.reason,
        "sentence": found.judgement.sentence,
        "round": found.judgement.round_,
        "requests": len(experience),
        "feedback": {kind: count for kind, count in kinds.items() if count},
        "corrected": int((experience.corrected >= 0).sum()),
        "left_out": dict(left_out or {}),
        "evidence": [asdict(one) for one in found.judgement.evidence],
        "estimates": {
            who: {method: asdict(one) for method, one in methods.items()} for who, methods in found.estimates.items()
        },
        "changes": [
            {"category": category, "from": before, "to": after}
            for category, before, after in zip(new.categories, old.choice, new.choice, strict=True)
            if before != after
        ],
        "moves": [asdict(one) | {"sentence": one.sentence} for one in found.moves],
        "quality": found.refit.quality.tolist(),
        "counts": found.refit.table.count.tolist(),
        "categories": new.categories,
        "experts": new.experts,
        "tenants": [asdict(one) | {"sentence": one.sentence} for one in found.refit.agreements],
    }


def plan_markdown(report: Mapping[str, Any]) -> str:
    """The report as a page of Markdown."""
    feedback = ", ".join(f"{count} {kind}" for kind, count in report["feedback"].items()) or "none"
    parts = [
        f"# Learning, round {report['round']}: {'promoted' if report['promoted'] else 'kept'}",
        f"{report['sentence'][0].upper()}{report['sentence'][1:]}.",
        f"{report['requests']} requests; feedback: {feedback}; {report['corrected']} corrected categories.",
    ]
    if report["left_out"]:
        parts.append(
            "Left out: " + ", ".join(f"{count} {reason}" for reason, count in report["left_out"].items()) + "."
        )
    if report["changes"]:
        rows = [[row["category"], row["from"], row["to"]] for row in report["changes"]]
        parts += ["## Changes", _table(["category", "from", "to"], rows)]
    if report["moves"]:
        parts += ["## Moves and their evidence", "\n".join(f"- {one['sentence']}" for one in report["moves"])]
    if report["estimates"]:
        parts += ["## Off-policy estimates", _estimates(report["estimates"])]
    if doubted := [one["sentence"] for one in report["tenants"] if one["trust"] < 1.0]:
        parts += ["## Feedback not trusted", "\n".join(f"- {sentence}" for sentence in doubted)]
    return "\n\n".join(parts) + "\n"


def _estimates(found: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    rows = [
        [who, method, f"{e['value']:.4f}", f"{e['low']:.4f} to {e['high']:.4f}", f"{e['effective']:.0f}", e["warning"]]
        for who, methods in found.items()
        for method, e in methods.items()
    ]
    return _table(["assignment", "method", "mean reward", "95 %", "effective requests", "warning"], rows)


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


MAX_REPORTS = 50
"""Kept reports of rejected candidates of all kinds, the newest."""


def write_plan_report(folder: Path, report: Mapping[str, Any]) -> None:
    """Write report.json, report.md and report.svg into a folder that exists."""
    (folder / "report.json").write_bytes(orjson.dumps(report, option=orjson.OPT_INDENT_2))
    (folder / "report.md").write_text(plan_markdown(report), encoding="utf-8")
    plot_round(report, folder / "report.svg")


def keep_report(root: Path, write: Callable[[Path], None], *, kind: str, now: float) -> Path:
    """Write a report into a new folder under `root`, named by the time `now` (Unix seconds) and the kind of artifact.

    Deletes the oldest folders beyond MAX_REPORTS. Returns the new one.
    """
    folder = root / f"{datetime.fromtimestamp(now, UTC):%Y%m%dT%H%M%S.%fZ}-{kind}"
    folder.mkdir(parents=True)
    write(folder)
    for old in sorted(root.iterdir())[:-MAX_REPORTS]:
        shutil.rmtree(old)
    return folder
