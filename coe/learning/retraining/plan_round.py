"""One round of learning: experience in, a candidate assignment and the judgement over it out. Pure."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from coe.learning.estimation.experience import Experience
from coe.learning.estimation.off_policy import (
    FOLDS,
    Estimate,
    LoggedBandit,
    estimates,
    exploration_policy,
    fold_indices,
    greedy_policy,
)
from coe.learning.estimation.refit import Refit, Weighting, refit, trust_of
from coe.learning.estimation.trust import agreements
from coe.learning.retraining.moves import (
    HeldOut,
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
from coe.learning.retraining.promotion import (
    Evidence,
    Judgement,
    Reason,
    falling_categories,
    held_out_evidence,
    logged_evidence,
    significance_level,
)
from coe.mapping import Assignment
from coe.mapping.score_table import ScoreTable

Array = NDArray[np.float64]
SolvePlan = Callable[[ScoreTable, Array], Assignment]
"""Solves the assignment of a table and its quality (m, k) under the declared budget."""

MIN_SERVED = 100
"""Rated requests of the current assignment below which logged traffic is no evidence."""
RATINGS_GROWTH = 1.5
"""Factor by which the rated requests must have grown since the last test, so that tests stay few as a log grows."""
OPENING_SHARE = 0.1
"""Part of a round's chance that opening categories for exploration may spend."""
SIDE_EFFECT_SAMPLE = 20_000
"""Requests, the newest, on which the side effects of opening a category for exploration are measured."""
LOSS_TOLERANCE = 1e-4
"""Quality by which the five digits of logged posteriors may move an expert across the limit of exploration."""
MAX_LOSS_ELSEWHERE = 0.01
"""Loss of mean quality in one source that rejects what another source shows."""


@dataclass(frozen=True, slots=True, eq=False)
class CurrentPlan:
    """The assignment in use: `since` when (Unix seconds) requests are its own, judged how often since it was promoted,
    and with what exploration it served. `charge` is what the declared cost_weight takes off beside any assignment's
    prices, a number for each expert or one for all. The last test, at `tested_at` (Unix seconds), used `tested`
    ratings."""

    assignment: Assignment
    since: float
    rounds: int
    rate: float
    loss: float
    charge: Array | float = 0.0
    tested: int = 0
    tested_at: float = 0.0

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
class JudgedPlan:
    """The result of a round of learning.

    `candidate` is the assignment with the accepted moves, or with all proposed ones where none is accepted. `tested`
    is False where too few ratings are new for a test. `rated` counts the ratings of the current assignment's own
    requests, the latest of which came at `rated_until` (Unix seconds). `estimates` has the off-policy estimates of
    both assignments by method; it is empty where the current assignment has too few requests of its own.
    """

    candidate: Assignment
    refit: Refit
    judgement: Judgement
    estimates: Mapping[str, Mapping[str, Estimate]]
    moves: tuple[Move, ...]
    tested: bool
    rated: int
    rated_until: float


def judge_plan(
    experience: Experience,
    current: CurrentPlan,
    *,
    now: float,
    plan: SolvePlan,
    probes: Probes | None = None,
    base: ScoreTable | None = None,
    guarded: Sequence[str] = (),
    weighting: Weighting | None = None,
) -> JudgedPlan:
    """Refit quality, propose a move for each category, and accept the moves that have evidence.

    Evidence comes from the probes, and from the trusted, rated requests that the current assignment has served itself,
    each judged by a refit without it. A category without evidence keeps its row. `base` is the measured quality that
    feedback is added to; only fresh measurements (`probes` given) also judge tenants. `now` is in Unix seconds.
    """
    found = agreements(experience, base=base if probes else None)

    def fit(part: Experience) -> Refit:
        return refit(part, now=now, base=base, weighting=weighting, found=found)

    fitted, present = fit(experience), current.charged(current.assignment)
    trusted = experience.part(experience.telling & (trust_of(experience, found) == 1.0))
    served = served_requests(trusted, current, fit, all_shown=probes is not None)
    held = HeldOut(probes.seen, probes.scores) if probes else None
    nothing = np.zeros_like(present.quality, dtype=np.bool_)
    shown = ~nothing if probes else served.shown if served else nothing
    rows = proposed_rows(present, fitted.quality, shown=shown, loss=current.loss)
    due = probes is not None or served is None or _is_test_due(served, current)
    chance = significance_level(current.rounds + 1) if due else 0.0
    opening = OPENING_SHARE * chance if base is not None and probes is None else 0.0
    moves = judged_moves(present, rows, served=served, probes=held, chance=chance - opening, margin=MAX_LOSS_ELSEWHERE)
    if served is not None and base is not None and probes is None:
        taken = [move.category for move in moves if move.accepted]
        opened, rows = explored_moves(
            present,
            rows,
            served,
            base,
            traffic=_newest_requests(experience),
            level=fitted.level,
            loss=current.loss,
            taken=taken,
            chance=opening,
        )
        twice = {move.category for move in opened}
        moves = (*(move for move in moves if move.category not in twice), *opened)
    assembly = _PlanBuilder(current, rows, plan, fitted.table)
    moves = assembly.within_budget(moves)
    accepted = _indices(present, moves, ("better", "explored"))
    judged = _indices(present, moves, ("better",)) if accepted else moved_categories(present, rows)
    candidate = assembly.solved(accepted or judged) if accepted or judged else current.assignment
    evidence = []
    if probes is not None:
        old, then = (_scores(probes, current.charged(one)) for one in (current.assignment, candidate))
        evidence.append(held_out_evidence(old, then, probes.categories, guarded=guarded))
    estimated = {}
    if served is not None:
        new = served.policy(current.charged(candidate), judged)
        evidence.append(
            logged_evidence(served.log, served.old, new, _likeliest_categories(served.experience), guarded=guarded)
        )
        estimated = {"current": estimates(served.log, served.old), "candidate": estimates(served.log, new)}
    judgement = _judgement(moves, evidence, round_=current.rounds + 1, due=due)
    rated, deadline = (len(served.log), float(served.experience.time.max())) if served else (0, 0.0)
    return JudgedPlan(candidate, fitted, judgement, estimated, moves, due, rated, deadline)


def _is_test_due(served: Served, current: CurrentPlan) -> bool:
    """Whether the ratings since the last test are GROWTH - 1 of those that it used, or of a shorter log."""
    new = int((served.experience.time > current.tested_at).sum())
    return new >= (RATINGS_GROWTH - 1.0) * min(current.tested, len(served.log))


def _newest_requests(experience: Experience) -> Experience:
    return experience.part(np.arange(max(len(experience) - SIDE_EFFECT_SAMPLE, 0), len(experience)))


def _indices(assignment: Assignment, moves: Sequence[Move], verdicts: Collection[str]) -> tuple[int, ...]:
    return tuple(assignment.categories.index(move.category) for move in moves if move.verdict in verdicts)


def _scores(probes: Probes, assignment: Assignment) -> Array:
    return np.asarray((greedy_policy(probes.seen, assignment) * probes.scores).sum(axis=1))


def _likeliest_categories(experience: Experience) -> tuple[str, ...]:
    return tuple(experience.categories[index] for index in experience.posterior.argmax(axis=1))


def served_requests(
    trusted: Experience, current: CurrentPlan, fit: Callable[[Experience], Refit], *, all_shown: bool = False
) -> Served | None:
    """The requests that the current assignment served, with refits for each fold; None where they are too few."""
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
    log = LoggedBandit.of(experience, supported=supported)
    return Served(experience, log, greedy_policy(experience, present), folds[own], np.stack(rows), shown, rated)


@dataclass(frozen=True, slots=True, eq=False)
class _PlanBuilder:
    """Builds the assignment with the rows of some categories replaced, under the declared budget."""

    current: CurrentPlan
    rows: Array
    plan: SolvePlan
    table: ScoreTable

    def solved(self, categories: Collection[int]) -> Assignment:
        before = self.current.assignment
        found = self.plan(self.table, with_rows(before, self.rows, categories).quality)
        if before.unmeasured is None:
            return found
        unmeasured = before.unmeasured & ~np.isfinite(found.quality)
        return replace(found, unmeasured=unmeasured if unmeasured.any() else None)

    def within_budget(self, moves: Sequence[Move]) -> tuple[Move, ...]:
        """The moves; one is rejected whose plan, to keep the budget, would send it or another category elsewhere."""
        order = sorted(
            (number for number, move in enumerate(moves) if move.accepted), key=lambda n: _smallest_p(moves[n])
        )
        if self._holds([moves[number] for number in order]):
            return tuple(moves)
        kept: list[int] = []
        rejected = []
        for number in order:
            if self._holds([moves[one] for one in (*kept, number)]):
                kept.append(number)
            else:
                rejected.append(number)
        return tuple(
            replace(move, verdict="breaks the budget") if number in rejected else move
            for number, move in enumerate(moves)
        )

    def _holds(self, moves: Sequence[Move]) -> bool:
        """Whether the solved plan sends each moved category to its target, and every other one where it goes now."""
        if not moves:
            return True
        before = self.current.charged(self.current.assignment)
        categories = [before.categories.index(move.category) for move in moves]
        wanted = shares(before)
        for category, move in zip(categories, moves, strict=True):
            if move.verdict == "better":
                wanted[category] = shares(with_rows(before, self.rows, (category,)))[category]
        after = shares(self.current.charged(self.solved(categories)))
        return bool(np.array_equal(after, wanted))


def _smallest_p(move: Move) -> float:
    return min(one.above for one in move.contrasts.values())


def _judgement(moves: Sequence[Move], evidence: Sequence[Evidence], *, round_: int, due: bool) -> Judgement:
    def verdict(reason: Reason, sentence: str) -> Judgement:
        return Judgement(reason == "better", reason, sentence, round_, tuple(evidence))

    if not evidence:
        return verdict("nothing to judge by", "kept: there is neither a held-out set nor rated traffic to judge by")
    if not due:
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
    return verdict("not better", f"kept: {_closest(moves)}")


def _closest(moves: Sequence[Move]) -> str:
    judged = [move for move in moves if move.contrasts]
    if not judged:
        return "no category would go to another expert"
    return f"no move is shown to be better; the closest is {min(judged, key=_smallest_p).sentence}"
