"""Builds and judges a candidate plan: refits quality from experience and accepts the moves that have evidence.

It is pure: it computes a candidate and its judgement from experience and the current plan. `moves` tests each move of a
category. This module replaces the quality rows of the moved categories, solves the candidate under the declared budget,
guards the declared categories, and sends exploration where it can change the plan. `coe.learning.plan_round` uses it.
Arrays have n requests, m categories and k experts.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from coe.learning.experience import Experience
from coe.learning.exploration import exploration_weights, newly_explored
from coe.learning.moves import (
    MIN_LEAD,
    HeldOutProbes,
    Move,
    judged_moves,
    open_cells,
    shares,
    summary,
    with_rows,
)
from coe.learning.off_policy import BanditLog, Estimate, greedy_policy, logged_evidence, policy_value
from coe.learning.refit import Refit, Weighting, agreements, refit, trust_of
from coe.planning.assignment import Assignment
from coe.planning.score_table import ScoreTable
from coe.trials.judgement import (
    Evidence,
    Judgement,
    Reason,
    falling_categories,
    held_out_evidence,
)

Array = NDArray[np.float64]
SolvePlan = Callable[[ScoreTable, Array], Assignment]
"""Solves the assignment of a score table and its quality (m, k) under the declared budget."""


@dataclass(frozen=True, slots=True, eq=False)
class CurrentPlan:
    """The assignment in use.

    It explores at `rate` within `loss`. `charge` is what the declared cost_weight adds to an assignment's prices, for
    each expert or for all. `since` is the time (Unix seconds) by category of the request that showed its last move.
    """

    assignment: Assignment
    rate: float
    loss: float
    charge: Array | float = 0.0
    since: Mapping[str, float] = field(default_factory=dict)

    def charged(self, assignment: Assignment) -> Assignment:
        """The assignment with the prices that requests are decided by."""
        return replace(assignment, price=assignment.price + self.charge)


@dataclass(frozen=True, slots=True, eq=False)
class PlanBuilder:
    """Builds the assignment with the rows of some categories replaced, under the declared budget."""

    current: CurrentPlan
    rows: Mapping[int, Array]
    solve_plan: SolvePlan
    table: ScoreTable

    def solved(self, categories: Collection[int]) -> Assignment:
        before = self.current.assignment
        found = self.solve_plan(self.table, with_rows(before, self.rows, categories).quality)
        found = replace(found, exploration=before.exploration)
        if before.unmeasured is None:
            return found
        unmeasured = before.unmeasured & ~np.isfinite(found.quality)
        return replace(found, unmeasured=unmeasured if unmeasured.any() else None)

    def within_budget(self, moves: Sequence[Move]) -> tuple[Move, ...]:
        """The moves; one is rejected if the budget would make its plan send it, or another category, to another
        expert."""
        ordered = sorted((move for move in moves if move.accepted), key=lambda move: move.chance)
        if self._holds(ordered):
            return tuple(moves)
        kept: list[Move] = []
        for move in ordered:
            if self._holds([*kept, move]):
                kept.append(move)
        rejected = {move.category for move in ordered} - {move.category for move in kept}
        return tuple(replace(one, verdict="breaks the budget") if one.category in rejected else one for one in moves)

    def _holds(self, moves: Sequence[Move]) -> bool:
        """Checks that the solved plan sends each moved category to its target and leaves all others where they are."""
        if not moves:
            return True
        before = self.current.charged(self.current.assignment)
        categories = [before.categories.index(move.category) for move in moves]
        expected = shares(before)
        for category, move in zip(categories, moves, strict=True):
            expected[category] = np.array(before.experts) == move.target
        after = shares(self.current.charged(self.solved(categories)))
        return bool(np.array_equal(after, expected))


MIN_SERVED = 100
"""Rated requests that the estimates of a plan on logged traffic need."""


@dataclass(frozen=True, slots=True, eq=False)
class JudgedPlan:
    """The result of a round.

    `candidate` is the assignment with the accepted moves and where exploration goes now. `estimates` has the off-policy
    estimates of both assignments; it is empty where too few requests are rated.
    """

    candidate: Assignment
    refit: Refit
    judgement: Judgement
    estimates: Mapping[str, Estimate]
    moves: tuple[Move, ...]


def judge_plan(
    experience: Experience,
    current: CurrentPlan,
    *,
    now: float,
    solve_plan: SolvePlan,
    probes: HeldOutProbes | None = None,
    base: ScoreTable | None = None,
    guarded: Sequence[str] = (),
    weighting: Weighting | None = None,
) -> JudgedPlan:
    """Accept the moves that the trusted, rated requests and the probes show, and refit the quality of their categories.

    A category without a move keeps its row. `base` is the measured quality that feedback is added to; only fresh
    measurements (`probes` given) also judge tenants. `now` is in Unix seconds.
    """
    tenants = agreements(experience, base=base if probes else None)
    fitted = refit(experience, now=now, base=base, weighting=weighting, found=tenants)
    present = current.charged(current.assignment)
    trusted = experience.part(experience.usable_off_policy & (trust_of(experience, tenants) == 1.0))
    moves = judged_moves(present, fitted.quality, trusted, probes=probes, since=current.since)
    rows = {
        present.categories.index(move.category): _moved_row(present, fitted.quality, move, loss=current.loss)
        for move in moves
        if move.accepted
    }
    builder = PlanBuilder(current, rows, solve_plan, fitted.table)
    moves = builder.within_budget(moves)
    moved = [present.categories.index(move.category) for move in moves if move.accepted]
    candidate = builder.solved(moved) if moved else current.assignment
    evidence, estimates = list[Evidence](), dict[str, Estimate]()
    if probes is not None:
        old, new = (probes.policy_scores(current.charged(one)) for one in (current.assignment, candidate))
        evidence.append(held_out_evidence(old, new, probes.categories, guarded=guarded))
    if len(trusted) >= MIN_SERVED:
        log = BanditLog.of(trusted)
        old, new = (greedy_policy(trusted, current.charged(one)) for one in (current.assignment, candidate))
        likeliest = tuple(trusted.categories[row] for row in trusted.posterior.argmax(axis=1))
        evidence.append(logged_evidence(log, old, new, likeliest, guarded=guarded))
        estimates = {"current": policy_value(log, old), "candidate": policy_value(log, new)}
    judgement = _judgement(moves, evidence)
    if not judgement.promote:
        candidate = current.assignment
    if current.rate > 0 and evidence:
        mix = np.bincount(experience.posterior.argmax(axis=1), minlength=len(experience.categories)) / len(experience)
        charged = current.charged(candidate)
        weights = exploration_weights(charged, fitted, mix, rate=current.rate, loss=current.loss)
        if changed := newly_explored(candidate, weights, mix):
            candidate = replace(candidate, exploration=weights)
            if not judgement.promote:
                sentence = f"promoted: exploration goes to {changed}; {judgement.sentence.removeprefix('kept: ')}"
                judgement = replace(judgement, reason="explored", sentence=sentence)
    return JudgedPlan(candidate, fitted, judgement, estimates, moves)


def with_residual_alone(judged: JudgedPlan, current: CurrentPlan, *, solve_plan: SolvePlan, gain: str) -> JudgedPlan:
    """Return a plan with the residual of `solve_plan`, no move and the exploration of `judged`, promoted for its
    `gain`; `judged` itself where the budget would then send a category to another expert."""
    candidate = PlanBuilder(current, {}, solve_plan, judged.refit.table).solved(())
    if candidate.choice != current.assignment.choice:
        return judged
    candidate = replace(candidate, exploration=judged.candidate.exploration)
    sentence = judged.judgement.sentence.removeprefix("promoted: ").removeprefix("kept: ")
    judgement = replace(judged.judgement, reason="better", sentence=f"promoted: {gain}; {sentence}")
    kept = tuple(move for move in judged.moves if not move.accepted)
    return replace(judged, candidate=candidate, judgement=judgement, moves=kept)


def _moved_row(current: Assignment, quality: Array, move: Move, *, loss: float) -> Array:
    """The refitted row (k,) of a moved category. The others stay behind the new expert, half of exploration's `loss`,
    as only that one was shown better; experts that were never scored stay so until they are."""
    category, target = current.categories.index(move.category), current.experts.index(move.target)
    value = quality[category] - current.price[category]
    lead = max(loss / 2, MIN_LEAD)
    behind = np.where(np.arange(len(value)) == target, value, np.minimum(value, value[target] - lead))
    is_open = np.isfinite(current.quality[category]) | (np.arange(len(value)) == target)
    return np.where(is_open & open_cells(current)[category], behind + current.price[category], -np.inf)


def _judgement(moves: Sequence[Move], evidence: Sequence[Evidence]) -> Judgement:
    accepted = [move for move in moves if move.accepted]

    def verdict(reason: Reason, sentence: str) -> Judgement:
        return Judgement(reason, sentence, tuple(evidence))

    if not evidence:
        return verdict("nothing to judge by", "kept: there is neither a held-out set nor rated traffic to judge by")
    if accepted and (fall := falling_categories(evidence)):
        return verdict("guarded category falls", f"kept: {fall}")
    if accepted:
        return verdict("better", f"promoted: {summary(accepted)}")
    thin = [move.category for move in moves if move.verdict == "thin support"]
    if thin and len(thin) == len(moves):
        return verdict("thin support", f"kept: thin support for a move of {', '.join(thin)}; explore more or wait")
    if other := [move for move in moves if move.verdict in ("worse elsewhere", "breaks the budget")]:
        reason: Reason = "worse elsewhere" if other[0].verdict == "worse elsewhere" else "breaks the budget"
        return verdict(reason, f"kept: {other[0].sentence}")
    if not moves:
        return verdict("not better", "kept: no category would go to another expert")
    closest = min(moves, key=lambda move: move.chance).sentence
    return verdict("not better", f"kept: no move is shown to be better; the closest is {closest}")
