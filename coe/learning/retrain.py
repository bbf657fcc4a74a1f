"""One round of learning: experience in, a candidate assignment and the judgement over it out. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from coe.learning.experience import Experience
from coe.learning.offpolicy import Estimate, Logged, estimates
from coe.learning.policies import Fit, cross_fitted, explored, greedy
from coe.learning.promotion import Judgement, held_out, judge, logged
from coe.learning.refit import Refit, Weighting, refit, trust_of
from coe.mapping import Assignment
from coe.scoring import ScoreTable

Array = NDArray[np.float64]
Plan = Callable[[Refit], Assignment]
"""From a refitted table to the assignment under the declared budget."""

FEWEST = 100
"""Requests that tell of the current assignment below which logged traffic is no evidence."""


@dataclass(frozen=True, slots=True, eq=False)
class Current:
    """The assignment in use: `since` when (Unix seconds) requests are its own, judged how often since it was promoted,
    and with what exploration it served. `charge` is what the declared thrift takes off beside any assignment's prices,
    a number for each expert or one for all."""

    assignment: Assignment
    since: float
    rounds: int
    rate: float
    loss: float
    charge: Array | float = 0.0

    def charged(self, assignment: Assignment) -> Assignment:
        """An assignment as it decides requests."""
        return replace(assignment, price=assignment.price + self.charge)


@dataclass(frozen=True, slots=True, eq=False)
class Probes:
    """A fixed held-out set that all experts were measured on; never learnt from.

    `seen` has the probes' posteriors, as experience without rewards; `scores` (n, k), 0 to 1; `categories` of each.
    """

    seen: Experience
    scores: Array
    categories: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Round:
    """What a round of learning came to; `estimates` has the off-policy estimates of the current and of the candidate
    assignment by method, empty where too few requests tell of the current one."""

    candidate: Assignment
    refit: Refit
    judgement: Judgement
    estimates: Mapping[str, Mapping[str, Estimate]]


def retrain(
    experience: Experience,
    current: Current,
    *,
    now: float,
    plan: Plan,
    probes: Probes | None = None,
    base: ScoreTable | None = None,
    guarded: Sequence[str] = (),
    weighting: Weighting | None = None,
) -> Round:
    """Refit quality from all experience, plan, and judge the plan against the current assignment.

    Judged on the probes, and on the trusted, telling requests that the current assignment has served itself, each with
    a candidate that was fitted without it. `now` in Unix seconds.
    """
    fitted = refit(experience, now=now, base=base, weighting=weighting)
    candidate = plan(fitted)
    evidence = []
    if probes is not None:
        both = (current.charged(one) for one in (current.assignment, candidate))
        old, new = ((greedy(probes.seen, a) * probes.scores).sum(axis=1) for a in both)
        evidence.append(held_out(old, new, probes.categories, guarded=guarded))
    told = experience.part(experience.telling & (trust_of(experience, fitted.agreements) == 1.0))

    def fit(part: Experience) -> Assignment:
        return current.charged(plan(refit(part, now=now, base=base, weighting=weighting, found=fitted.agreements)))

    served = _Served.of(told, current, fit)
    if served is not None:
        evidence.append(logged(served.log, served.old, served.new, served.likeliest, guarded=guarded))
    judgement = judge(evidence, round_=current.rounds + 1)
    return Round(candidate, fitted, judgement, served.estimates() if served else {})


@dataclass(frozen=True, slots=True, eq=False)
class _Served:
    """The requests that the current assignment served, and where it and the candidate would send them."""

    log: Logged
    old: Array
    new: Array
    likeliest: tuple[str, ...]

    @classmethod
    def of(cls, told: Experience, current: Current, fit: Fit) -> _Served | None:
        own = told.time >= current.since
        if own.sum() < FEWEST:
            return None
        served, new = told.part(own), cross_fitted(told, fit)[own]
        present = current.charged(current.assignment)
        chances = explored(served, present, rate=current.rate, loss=current.loss)
        likeliest = tuple(told.categories[index] for index in served.posterior.argmax(axis=1))
        return cls(Logged.of(served, supported=chances > 0), greedy(served, present), new, likeliest)

    def estimates(self) -> Mapping[str, Mapping[str, Estimate]]:
        return {"current": estimates(self.log, self.old), "candidate": estimates(self.log, self.new)}
