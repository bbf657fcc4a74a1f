"""`coe tune` with experts of known skill: what its plan loses to the best plan, and the scores that it takes.

`specialists` has experts that are excellent in one or two categories and poor in the others. `newcomer` adds an expert
after that, and tunes again. In `level`, two experts are equal at seven times the price. `score` is the plan of all
scores (`coe score`, `coe plan`) on the experts of `newcomer`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.user_loop.experts import CATEGORIES, Experts, Skill, command, declare, serving

SPECIALISTS = {
    "claude": Skill(0.85, (3.0, 15.0), {"code": 0.9}),
    "codestar": Skill(0.5, (0.8, 3.5), {"code": 0.95}),
    "midway": Skill(0.76, (1.0, 4.0)),
    "medic": Skill(0.6, (0.5, 2.0), {"medicine": 0.94, "natural_science": 0.9}),
    "polyglot": Skill(0.55, (0.5, 2.0), {"multilingual": 0.95, "creative_writing": 0.9}),
    "small": Skill(0.55, (0.1, 0.3), {"everyday": 0.88, "general": 0.86}),
}
NEWSTAR = Skill(
    0.65,
    (0.3, 1.0),
    {"math": 0.95, "logic_reasoning": 0.93, "business_finance": 0.92, "social_science": 0.9, "law": 0.97},
)
LEVEL = {
    "dear": Skill(0.85, (3.5, 14.0), {"math": 0.97}),
    "cheap": Skill(0.85, (0.5, 2.0), {"math": 0.7}),
    "weak": Skill(0.5, (0.1, 0.3)),
}


@dataclass(frozen=True)
class Outcome:
    """A plan: its true loss, the scores that were taken for it, its stated and its true quality, and the share of
    categories in which it chooses the cheapest of the truly best experts."""

    loss: float
    scored: int
    stated: float
    true: float
    cheapest: float


def outcome(skills: Mapping[str, Skill], report: Mapping[str, Any], scored: int) -> Outcome:
    """Compare a plan with the truth; every category has equal weight."""
    names = list(skills)
    truth = np.array([[skills[name][category] for name in names] for category in CATEGORIES])
    prices = np.array([sum(skills[name].price) for name in names])
    plan = {row["category"]: row["expert"] for row in report["assignment"]}
    chosen = np.array([names.index(plan[category]) for category in CATEGORIES])
    true = truth[np.arange(len(truth)), chosen]
    best = truth.max(axis=1)
    cheapest = np.where(truth == best[:, None], prices, np.inf).argmin(axis=1)
    stated = next(row["quality"] for row in report["against"] if row["expert"] is None)
    return Outcome(float((best - true).mean()), scored, stated, float(true.mean()), float((chosen == cheapest).mean()))


def tuned(folder: Path, experts: type[Experts], names: list[str]) -> Outcome:
    """Declare the experts and tune, as a user does."""
    declare(folder, experts, names)
    report = command(folder, "tune", "--yes", "--out", str(folder / "quality"))
    return outcome({name: experts.skills[name] for name in names}, report["plan"], report["status"]["scored"])


def run(seeds: int) -> None:
    """Print a line for each case."""
    cases: dict[str, list[Outcome]] = {}
    with serving(SPECIALISTS | LEVEL | {"newstar": NEWSTAR}) as experts:
        for experts.seed in range(seeds):
            with tempfile.TemporaryDirectory() as place:
                folder = Path(place)
                cases.setdefault("specialists", []).append(tuned(folder, experts, list(SPECIALISTS)))
                cases.setdefault("newcomer", []).append(tuned(folder, experts, [*SPECIALISTS, "newstar"]))
            with tempfile.TemporaryDirectory() as place:
                cases.setdefault("level", []).append(tuned(Path(place), experts, list(LEVEL)))
            print(f"seed {experts.seed}: " + "; ".join(f"{name} {one[-1].loss:.3f}" for name, one in cases.items()))
    for line in lines(cases):
        print(line)


def lines(cases: Mapping[str, list[Outcome]]) -> Iterator[str]:
    """Yield the table of the outcomes."""
    yield "case          loss    worst   above .015   scores  most   stated   true   cheapest of the best"
    for name, outcomes in cases.items():
        loss, scored = (np.array([getattr(one, key) for one in outcomes]) for key in ("loss", "scored"))
        stated, true, cheapest = (
            np.mean([getattr(one, key) for one in outcomes]) for key in ("stated", "true", "cheapest")
        )
        yield (
            f"{name:12} {loss.mean():6.4f}  {loss.max():6.4f}  {(loss > 0.015).mean():8.0%}  {scored.mean():9.0f} "
            f"{scored.max():5.0f}  {stated:7.3f}  {true:6.3f}  {cheapest:8.0%}"
        )
