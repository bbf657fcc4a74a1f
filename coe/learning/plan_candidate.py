"""Builds and judges a candidate plan: refits quality from experience and accepts the moves that have evidence.

It is pure: it computes a candidate and its judgement from experience and the current plan. `moves` tests each move of a
category. This module splits the round's significance level and replaces the quality rows of the moved categories. It
then solves the candidate under the declared budget, and judges it as a whole. `coe.learning.plan_round` uses it.
Arrays have n requests, m categories and k experts.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from coe.learning.experience import Experience
from coe.learning.moves import (
    HeldOutProbes,
    Move,
    Served,
    explored_moves,
    judged_moves,
    moved_categories,
    proposed_rows,
    shares,
    shown_cells,
    summary,
    with_rows,
)
from coe.learning.off_policy import (
    FOLDS,
    BanditLog,
    Estimate,
    exploration_policy,
    fold_indices,
    greedy_policy,
    policy_value,
)
from coe.learning.promotion import (
    Evidence,
    Judgement,
    Reason,
    falling_categories,
    held_out_evidence,
    judge,
    logged_evidence,
    significance_level,
)
from coe.learning.refit import Refit, Weighting, agreements, refit, trust_of
from coe.planning.assignment import Assignment
from coe.planning.score_table import ScoreTable

Array = NDArray[np.float64]
SolvePlan = Callable[[ScoreTable, Array], Assignment]
"""Solves the assignment of a score table and its quality (m, k) under the declared budget."""


@dataclass(frozen=True, slots=True, eq=False)
class CurrentPlan:
    """The assignment in use and how it served.

    It has decided all requests since `since` (Unix seconds), exploring at `rate` within `loss`. `rounds` counts the
    candidates judged since it was promoted. `charge` is what the declared cost_weight adds to an assignment's prices,
    for each expert or for all. The last test, at `tested_at` (Unix seconds), used `tested` ratings.
    """

    assignment: Assignment
    since: float
    rounds: int
    rate: float
    loss: float
    charge: Array | float = 0.0
    tested: int = 0
    tested_at: float = 0.0

    def charged(self, assignment: Assignment) -> Assignment:
        """The assignment with the prices that requests are decided by."""
        return replace(assignment, price=assignment.price + self.charge)


@dataclass(frozen=True, slots=True, eq=False)
class PlanBuilder:
    """Builds the assignment with the rows of some categories replaced, under the declared budget."""

    current: CurrentPlan
    rows: Array
    solve_plan: SolvePlan
    table: ScoreTable

    def solved(self, categories: Collection[int]) -> Assignment:
        before = self.current.assignment
        found = self.solve_plan(self.table, with_rows(before, self.rows, categories).quality)
        if before.unmeasured is None:
            return found
        unmeasured = before.unmeasured & ~np.isfinite(found.quality)
        return replace(found, unmeasured=unmeasured if unmeasured.any() else None)

    def within_budget(self, moves: Sequence[Move]) -> tuple[Move, ...]:
        """The moves; one is rejected if the budget would make its plan send it, or another category, to another
        expert."""
        ordered = sorted((move for move in moves if move.accepted), key=smallest_p)
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
            if move.verdict == "better":
                expected[category] = shares(with_rows(before, self.rows, (category,)))[category]
        after = shares(self.current.charged(self.solved(categories)))
        return bool(np.array_equal(after, expected))


def smallest_p(move: Move) -> float:
    return min(one.above for one in move.contrasts.values())


MIN_SERVED = 100
"""Rated requests of the current assignment that logged traffic needs to count as evidence."""
RATINGS_GROWTH = 1.5
"""Growth of the rated requests since the last test that the next one needs, so that tests stay few as a log grows."""
OPENING_SHARE = 0.1
"""Share of a round's significance level for opening categories for exploration."""
SIDE_EFFECT_SAMPLE = 20_000
"""Newest requests on which the side effects of opening a category are measured."""
LOSS_TOLERANCE = 1e-4
"""Quality by which the five digits of logged posteriors may move an expert across the limit of exploration."""


@dataclass(frozen=True, slots=True, eq=False)
class JudgedPlan:
    """The result of a round.

    `candidate` is the assignment with the accepted moves, or with all proposed ones where none is accepted. `tested` is
    False where too few ratings are new for a test. `rated` counts the ratings of the current assignment's own requests,
    the latest of which came at `rated_until` (Unix seconds). `estimates` has the off-policy estimates of both
    assignments; it is empty where the current assignment has too few requests.
    """

    candidate: Assignment
    refit: Refit
    judgement: Judgement
    estimates: Mapping[str, Estimate]
    moves: tuple[Move, ...]
    tested: bool
    rated: int
    rated_until: float


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
    """Refit quality, propose a move for each category, and accept the moves that have evidence.

    Evidence comes from the probes, and from the trusted, rated requests that the current assignment has served itself,
    each judged by a refit without it. A category without evidence keeps its row. `base` is the measured quality that
    feedback is added to; only fresh measurements (`probes` given) also judge tenants. `now` is in Unix seconds.
    """
    tenants = agreements(experience, base=base if probes else None)

    def fit(part: Experience) -> Refit:
        return refit(part, now=now, base=base, weighting=weighting, found=tenants)

    fitted, present = fit(experience), current.charged(current.assignment)
    trusted = experience.part(experience.usable_off_policy & (trust_of(experience, tenants) == 1.0))
    served = served_requests(trusted, current, fit, all_shown=probes is not None)
    is_due, shown = True, np.full(present.quality.shape, probes is not None)
    if probes is None and served is not None:  # a test needs enough new ratings since the last one, or a shorter log
        new = int((served.experience.time > current.tested_at).sum())
        is_due, shown = new >= (RATINGS_GROWTH - 1.0) * min(current.tested, len(served.log)), served.shown
    rows = proposed_rows(present, fitted.quality, shown=shown, loss=current.loss)
    level = significance_level(current.rounds + 1) if is_due else 0.0
    moves, rows = _judge_moves(experience, current, fitted, rows, served=served, probes=probes, base=base, level=level)
    builder = PlanBuilder(current, rows, solve_plan, fitted.table)
    moves = builder.within_budget(moves)
    accepted = _indices(present, moves, ("better", "explored"))
    judged = _indices(present, moves, ("better",)) if accepted else moved_categories(present, rows)
    candidate = builder.solved(accepted or judged) if accepted or judged else current.assignment
    evidence, found = list[Evidence](), dict[str, Estimate]()
    if probes is not None:
        old, new_scores = (probes.policy_scores(current.charged(one)) for one in (current.assignment, candidate))
        evidence.append(held_out_evidence(old, new_scores, probes.categories, guarded=guarded))
    if served is not None:
        policy = served.policy(current.charged(candidate), judged)
        likeliest = tuple(served.experience.categories[row] for row in served.experience.posterior.argmax(axis=1))
        evidence.append(logged_evidence(served.log, served.old, policy, likeliest, guarded=guarded))
        found = {"current": policy_value(served.log, served.old), "candidate": policy_value(served.log, policy)}
    judgement = _judgement(moves, evidence, round_=current.rounds + 1, is_due=is_due)
    rated, rated_until = (len(served.log), float(served.experience.time.max())) if served else (0, 0.0)
    return JudgedPlan(candidate, fitted, judgement, found, moves, is_due, rated, rated_until)


def with_residual_alone(judged: JudgedPlan, current: CurrentPlan, *, solve_plan: SolvePlan, gain: str) -> JudgedPlan:
    """Return a plan with the residual of `solve_plan` and no move, promoted for its `gain`; `judged` itself where the
    budget would then send a category to another expert."""
    before = current.assignment
    candidate = PlanBuilder(current, before.quality, solve_plan, judged.refit.table).solved(())
    if candidate.choice != before.choice:
        return judged
    judgement = replace(judged.judgement, reason="better", sentence=f"promoted: {gain}")
    kept = tuple(move for move in judged.moves if not move.accepted)
    return replace(judged, candidate=candidate, judgement=judgement, moves=kept)


def _judge_moves(
    experience: Experience,
    current: CurrentPlan,
    fitted: Refit,
    rows: Array,
    *,
    served: Served | None,
    probes: HeldOutProbes | None,
    base: ScoreTable | None,
    level: float,
) -> tuple[tuple[Move, ...], Array]:
    """The judged moves, with the categories to open for exploration, and the quality rows (m, k) that make them."""
    present, may_open = current.charged(current.assignment), base is not None and probes is None
    opening = OPENING_SHARE * level if may_open else 0.0
    moves = judged_moves(present, rows, served=served, probes=probes, level=level - opening)
    if served is None or base is None or not may_open:
        return moves, rows
    opened, rows = explored_moves(
        present,
        rows,
        served,
        base,
        traffic=experience.part(np.arange(len(experience))[-SIDE_EFFECT_SAMPLE:]),
        rating_level=fitted.level,
        loss=current.loss,
        excluded=[move.category for move in moves if move.accepted],
        level=opening,
    )
    replaced = {move.category for move in opened}
    return (*(move for move in moves if move.category not in replaced), *opened), rows


def _indices(assignment: Assignment, moves: Sequence[Move], verdicts: Collection[str]) -> tuple[int, ...]:
    return tuple(assignment.categories.index(move.category) for move in moves if move.verdict in verdicts)


def served_requests(
    trusted: Experience, current: CurrentPlan, fit: Callable[[Experience], Refit], *, all_shown: bool = False
) -> Served | None:
    """The requests that the current assignment served, with a refit for each fold; None where there are too few."""
    own = trusted.time >= current.since
    if own.sum() < MIN_SERVED:
        return None
    experience, present = trusted.part(own), current.charged(current.assignment)
    supported = exploration_policy(experience, present, rate=current.rate, loss=current.loss + LOSS_TOLERANCE) > 0
    shown, rated = shown_cells(experience, supported)
    usable = np.ones_like(shown) if all_shown else shown
    folds = fold_indices(len(trusted))
    rows = [
        proposed_rows(present, fit(trusted.part(folds != held)).quality, shown=usable, loss=current.loss)
        for held in range(FOLDS)
    ]
    log = BanditLog.of(experience, supported=supported)
    return Served(experience, log, greedy_policy(experience, present), folds[own], np.stack(rows), shown, rated)


def _judgement(moves: Sequence[Move], evidence: Sequence[Evidence], *, round_: int, is_due: bool) -> Judgement:
    if not evidence:
        return judge(evidence, round_=round_)
    verdict = partial(Judgement, round_=round_, evidence=tuple(evidence))
    if not is_due:
        return verdict("too little is new", "kept: too few requests were rated since the last test")
    accepted = [move for move in moves if move.accepted]
    if accepted and (fall := falling_categories(evidence)):
        return verdict("guarded category falls", f"kept: {fall}")
    better = any(move.verdict == "better" for move in moves)
    if worse := [one for one in evidence if better and one.overall.value < 0]:
        loss = f"{worse[0].overall.value:+.4f} on the {worse[0].source}"
        return verdict("worse elsewhere", f"kept: the moves together lose {loss} ({summary(accepted)})")
    if accepted:
        return verdict("better", f"promoted: {summary(accepted)}")
    thin = [move.category for move in moves if move.verdict == "thin support"]
    if thin and len(thin) == len(moves):
        return verdict("thin support", f"kept: thin support for a move of {', '.join(thin)}; explore more or wait")
    if other := [move for move in moves if move.verdict in ("worse elsewhere", "breaks the budget")]:
        reason: Reason = "worse elsewhere" if other[0].verdict == "worse elsewhere" else "breaks the budget"
        return verdict(reason, f"kept: {other[0].sentence}")
    if not (judged := [move for move in moves if move.contrasts]):
        return verdict("not better", "kept: no category would go to another expert")
    closest = min(judged, key=smallest_p).sentence
    return verdict("not better", f"kept: no move is shown to be better; the closest is {closest}")
