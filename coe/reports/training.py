"""The report of `coe train`: macro recall, the weakest categories and what to do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from coe.artifacts.manifest import MANIFEST
from coe.core import GENERAL
from coe.learning.router_comparison import Comparison

FEW_EXAMPLES = 30
"""Prompts of a category below which more of them are the best remedy."""
SHOWN_WEAKEST = 3
ADEQUATE_RECALL = 0.9
"""Recall from which a category needs no advice."""
SHARED_BORDER = 0.15
"""Share of prompts that two categories lose to each other above which they are probably one."""


@dataclass(frozen=True, slots=True)
class WeakCategory:
    """A category with its number of held-out prompts, its recall, and the category that gets most of the others."""

    name: str
    prompts: int
    recall: float
    taken_for: str
    share: float
    advice: str

    @property
    def sentence(self) -> str:
        confusion = f", {self.share:.0%} taken for {self.taken_for}" if self.share else ""
        return f"{self.name}: {self.recall:.0%} of {self.prompts} prompts right{confusion}; {self.advice}"


def macro_recall(confusion: Mapping[str, Any]) -> tuple[float, float]:
    """The mean recall of the categories and its standard error, each recall as that of a Beta(1, 1) prior.

    Categories have few prompts, of which all may be right by chance: the error of such a recall is not zero.
    """
    counts = np.array(confusion["counts"], dtype=np.float64)
    right, total = counts.diagonal(), counts.sum(axis=1)
    smooth = (right + 1) / (total + 2)
    error = float((smooth * (1 - smooth) / (total + 3)).sum() ** 0.5) / len(total)
    return float((right / np.maximum(total, 1)).mean()), error


def weakest(confusion: Mapping[str, Any]) -> list[WeakCategory]:
    """The categories of lowest recall, below ADEQUATE_RECALL, the worst first."""
    names, counts = confusion["categories"], np.array(confusion["counts"], dtype=np.float64)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    found = []
    for row in np.argsort(shares.diagonal(), kind="stable")[:SHOWN_WEAKEST]:
        if shares[row, row] >= ADEQUATE_RECALL:
            break
        others = shares[row].copy()
        others[row] = 0
        rival, prompts = int(others.argmax()), int(counts[row].sum())
        if min(shares[row, rival], shares[rival, row]) > SHARED_BORDER and GENERAL not in (names[row], names[rival]):
            advice = f"merge it with {names[rival]}, or say in both descriptions where the border is"
        elif prompts < FEW_EXAMPLES:
            advice = f"add examples ({FEW_EXAMPLES} or more work well)"
        else:
            advice = f"describe it better, and add prompts that look like {names[rival]}"
        found.append(
            WeakCategory(names[row], prompts, float(shares[row, row]), names[rival], float(others[rival]), advice)
        )
    return found


def training_report(metrics: Mapping[str, Any], judged: Comparison) -> dict[str, Any]:
    """What `coe train` prints, JSON-able."""
    if "confusion" not in metrics:
        return {"headline": "no held-out figures", "weakest": [], "comparison": judged.sentence}
    value, error = macro_recall(metrics["confusion"])
    return {
        "macro_recall": value,
        "error": error,
        "headline": f"macro recall {value:.1%} ± {1.96 * error:.1%} on held-out prompts",
        "weakest": [category.sentence for category in weakest(metrics["confusion"])],
        "comparison": judged.sentence,
    }


def training_lines(report: Mapping[str, Any]) -> Iterator[str]:
    """Yield the report of a training run, which `coe train` prints."""
    state = "in use" if report["in_use"] else "NOT in use: it is worse (--force puts it into use all the same)"
    yield f"router {report['version']} is {state}; {report['headline']}"
    yield f"compared with the router in use: {report['comparison']}"
    yield from report["weakest"]
    if dropped := {why: count for why, count in report["metrics"].get("dropped", {}).items() if count}:
        yield "prompts left out: " + ", ".join(f"{count} {why}" for why, count in dropped.items())
    yield f"held-out figures are in {Path(report['folder']) / MANIFEST}"
