"""Judges the moves of a candidate plan: a move assigns one category to another expert and needs evidence.

Evidence for a move is a gain on held-out probes or on logged traffic. Tests keep the family-wise error of a round (Holm
1979). `plan_candidate` uses it in the plan round of `coe retrain`. Arrays have n requests, m categories and k experts.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from coe.learning.experience import Experience
from coe.learning.off_policy import FOLDS, BanditLog, greedy_policy, policy_difference
from coe.learning.promotion import (
    FIRST_SOURCE_SHARE,
    HELD_OUT,
    LOGGED,
    MAX_LOSS_ELSEWHERE,
    SIGNIFICANCE,
    Contrast,
    estimated_contrast,
    paired_contrast,
)
from coe.planning.assignment import Assignment

Array = NDArray[np.float64]
Verdict = Literal[
    "better", "explored", "not better", "thin support", "not recent", "worse elsewhere", "breaks the budget"
]

MIN_RATED = 10
"""Rated requests that an expert needs in a category before the log can show a move to it."""
MAX_UNSUPPORTED = 0.2
"""Largest share of a move's traffic that the log could not have sent to the new expert."""
MIN_LEAD = 0.01
"""Minimum quality by which an expert without evidence stays behind the chosen one."""


@dataclass(frozen=True, slots=True)
class Move:
    """One category's move from the expert `current` to `target`.

    The verdict `better` accepts it; `explored` keeps `current` and opens the category for exploration of `target`.
    `contrasts` holds the gain in mean quality over all requests, by source of evidence. `rated` counts the rated
    requests of the category that `target` answered. `unsupported` is the share of the move's traffic that the log could
    not have sent to `target`. `group` marks a move that was shown only together with others, on the held-out set.
    """

    category: str
    current: str
    target: str
    rated: int
    unsupported: float
    contrasts: Mapping[str, Contrast]
    verdict: Verdict = "not better"
    group: bool = False

    @property
    def accepted(self) -> bool:
        return self.verdict in ("better", "explored")

    @property
    def sentence(self) -> str:
        """The move, its evidence and the verdict, for a report."""
        shown = ", ".join(
            f"{one.value:+.4f} ± {one.error:.4f} on the {source} (p = {one.above:.2g})"
            for source, one in self.contrasts.items()
        )
        together = " together with others" if self.group else ""
        change = f"{self.current} -> {self.target}: {self.verdict}{together}"
        if self.verdict == "explored":
            change = f"{self.current} stays, {self.target} is explored"
        return (
            f"{self.category}: {change}; {shown or 'no evidence'}; {self.rated} rated requests of {self.target} there"
        )


@dataclass(frozen=True, slots=True, eq=False)
class Served:
    """The rated requests that the plan in use decided, and the policies judged on them.

    `old` (n, k) is the policy of the plan in use. `fold` (n,) assigns each request to a fold; `rows` (FOLDS, m, k) are
    the quality rows proposed without that fold's requests. `shown` (m, k) marks the cells that the log can show, and
    `rated` (m, k) counts the requests behind each.
    """

    experience: Experience
    log: BanditLog
    old: Array
    fold: NDArray[np.int64]
    rows: Array
    shown: NDArray[np.bool_]
    rated: NDArray[np.int64]

    def move_policy(self, current: Assignment, category: int) -> Array:
        """The policy (n, k) that moves one category: only requests whose likeliest category it is go elsewhere."""
        own = self.experience.posterior.argmax(axis=1) == category
        return np.where(own[:, None], self.policy(current, (category,)), self.old)

    def policy(self, current: Assignment, categories: Collection[int]) -> Array:
        """The policy (n, k) of the plan in use with the rows of `categories` replaced, cross-fitted."""
        policy = np.empty_like(self.old)
        for held in range(FOLDS):
            rows = self.fold == held
            policy[rows] = greedy_policy(self.experience.part(rows), with_rows(current, self.rows[held], categories))
        return policy

    @property
    def family(self) -> int:
        """Categories in which the log can show a move: more than one expert has ratings there."""
        return int((self.shown.sum(axis=1) > 1).sum())


def shown_cells(experience: Experience, supported: NDArray[np.bool_]) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """The cells (m, k) that the log can show, and the rated requests in each.

    A request belongs to the cell of its likeliest category and the expert that answered, if exploration or the plan
    could have chosen that expert (`supported`, shape (n, k)).
    """
    shape = (len(experience.categories), len(experience.experts))
    counted = np.flatnonzero(supported[np.arange(len(experience)), experience.chosen])
    category = experience.posterior[counted].argmax(axis=1)
    rated = np.zeros(shape, dtype=np.int64)
    np.add.at(rated, (category, experience.chosen[counted]), 1)
    return rated >= MIN_RATED, rated


def proposed_rows(current: Assignment, quality: Array, *, shown: NDArray[np.bool_], loss: float) -> Array:
    """Quality rows (m, k) that may replace those of `current`, one by one.

    A cell without evidence cannot lead its row: it stays half of the exploration's `loss` behind the best shown cell,
    so that it is explored but not chosen. The chosen expert of each category counts as shown. Excluded cells stay
    excluded; those of experts that were never scored open once they are shown.
    """
    allowed = np.isfinite(current.quality)
    if current.unmeasured is not None:
        allowed |= current.unmeasured & shown
    chosen = shares(current) > 0
    value = np.where(allowed, quality - current.price, -np.inf)
    best = np.where((shown | chosen) & allowed, value, -np.inf).max(axis=1, keepdims=True)
    lead = max(loss / 2, MIN_LEAD)
    capped = np.where(shown | chosen, value, np.minimum(value, best - lead))
    return np.where(allowed, capped + current.price, -np.inf)


def with_rows(assignment: Assignment, rows: Array | Mapping[int, Array], categories: Collection[int]) -> Assignment:
    """The assignment with the quality rows of `categories` replaced."""
    quality = assignment.quality.copy()
    for category in categories:
        quality[category] = rows[category]
    return replace(assignment, quality=quality)


def shares(assignment: Assignment) -> Array:
    """The policy on requests of one category alone, shape (m, k); experts that tie share the category."""
    value = assignment.quality - assignment.price
    best = (value == value.max(axis=1, keepdims=True)) & np.isfinite(assignment.quality)
    return np.asarray(best / best.sum(axis=1, keepdims=True))


def moved_categories(current: Assignment, rows: Array) -> tuple[int, ...]:
    """Indices of the categories that `rows` send to another expert."""
    new = with_rows(current, rows, range(len(current.categories)))
    return tuple(np.flatnonzero((shares(new) != shares(current)).any(axis=1)).tolist())


@dataclass(frozen=True, slots=True, eq=False)
class HeldOutProbes:
    """A held-out set of probes that all experts were measured on; no fit uses it.

    `seen` has the posteriors, as experience without rewards; `scores` (n, k) are from 0 to 1; `categories` has length
    n.
    """

    seen: Experience
    scores: Array
    categories: tuple[str, ...]

    def policy_scores(self, assignment: Assignment) -> Array:
        """The score that the assignment's expert has on each probe, shape (n,)."""
        return np.asarray((greedy_policy(self.seen, assignment) * self.scores).sum(axis=1))

    def move_gain(self, current: Assignment, rows: Array, category: int) -> Array:
        """The gain (n,) of moving one category: only probes whose likeliest category it is count."""
        own = self.seen.posterior.argmax(axis=1) == category
        return np.where(own, self.gain(current, with_rows(current, rows, (category,))), 0.0)

    def gain(self, current: Assignment, candidate: Assignment) -> Array:
        """The candidate's score less that of `current` on each probe, shape (n,)."""
        return self.policy_scores(candidate) - self.policy_scores(current)


def judged_moves(
    current: Assignment, rows: Array, *, served: Served | None, probes: HeldOutProbes | None, level: float
) -> tuple[Move, ...]:
    """The moves that `rows` propose, each with its evidence and verdict.

    `level` bounds the probability that any move without a gain is accepted. Of two sources the held-out set gets
    FIRST_SOURCE_SHARE of it. A move that one source shows is rejected where another shows a larger loss than
    MAX_LOSS_ELSEWHERE.
    """
    proposed = moved_categories(current, rows)
    found = {category: _move(current, rows, category, served=served, probes=probes) for category in proposed}
    has_both = served is not None and probes is not None
    shares_of_level = (FIRST_SOURCE_SHARE, 1.0 - FIRST_SOURCE_SHARE) if has_both else (1.0, 1.0)
    levels = {source: part * level for source, part in zip((HELD_OUT, LOGGED), shares_of_level, strict=True)}
    by_log = _significant(found, LOGGED, levels[LOGGED], family=served.family) if served else set()
    by_probes = _significant(found, HELD_OUT, levels[HELD_OUT] / 2, family=len(found)) if probes else set()
    past = {category for category in by_log if served and not _gains_recently(served, current, category)}
    found |= {category: replace(found[category], verdict="not recent") for category in past}
    by_log -= past
    verdicts = {category: _verdict(move, shown=category in by_log | by_probes) for category, move in found.items()}
    if probes is not None:
        rest = [category for category in found if _may_join(found[category], verdicts[category], probes, category)]
        base = with_rows(current, rows, [category for category, verdict in verdicts.items() if verdict == "better"])
        gain = probes.gain(base, with_rows(base, rows, rest))
        if rest and paired_contrast(gain).above < levels[HELD_OUT] / 2:
            found |= {category: replace(found[category], group=True) for category in rest}
            verdicts |= dict.fromkeys(rest, "better")
    return tuple(replace(found[category], verdict=verdicts[category]) for category in proposed)


def _move(
    current: Assignment, rows: Array, category: int, *, served: Served | None, probes: HeldOutProbes | None
) -> Move:
    target = int(shares(with_rows(current, rows, (category,)))[category].argmax())
    contrasts: dict[str, Contrast] = {}
    verdict: Verdict = "not better"
    unsupported, rated = 1.0, 0
    if probes is not None:
        contrasts[HELD_OUT] = paired_contrast(probes.move_gain(current, rows, category))
    if served is not None:
        rated = int(served.rated[category, target])
        policy = served.move_policy(current, category)
        gained = np.maximum(policy - served.old, 0.0)
        unsupported = float((gained * ~served.log.supported).sum() / max(float(gained.sum()), 1e-12))
        if not served.shown[category, target] or unsupported > MAX_UNSUPPORTED:
            verdict = "thin support"
        else:
            contrasts[LOGGED] = estimated_contrast(served.log, served.old, policy)
    chosen = int(shares(current)[category].argmax())
    names = current.categories[category], current.experts[chosen], current.experts[target]
    return Move(*names, rated, unsupported, contrasts, verdict)


def _gains_recently(served: Served, current: Assignment, category: int) -> bool:
    """Checks that the estimated gain is above 0 in the later half of the requests that would move too."""
    policy = served.move_policy(current, category)
    moving = np.flatnonzero((policy != served.old).any(axis=1))
    later = np.zeros(len(served.log), dtype=np.bool_)
    later[moving[len(moving) // 2 :]] = True
    return policy_difference(served.log.part(later), policy[later], served.old[later]).value > 0


def _significant(found: Mapping[int, Move], source: str, level: float, *, family: int) -> set[int]:
    """The categories whose gain `source` shows at this family-wise level (Holm 1979)."""
    named = {c: move.contrasts[source] for c, move in found.items() if source in move.contrasts}
    accepted: set[int] = set()
    for category in sorted(named, key=lambda c: named[c].above):
        if not named[category].above < level / max(family - len(accepted), 1):
            break
        accepted.add(category)
    return accepted


def _may_join(move: Move, verdict: Verdict, probes: HeldOutProbes, category: int) -> bool:
    """Checks that the group test may include a move: it has enough probes, and no source shows a loss."""
    enough = int((probes.seen.posterior.argmax(axis=1) == category).sum()) >= MIN_RATED
    loses = any(one.value < 0 and one.below < SIGNIFICANCE for one in move.contrasts.values())
    return verdict in ("not better", "thin support") and enough and not loses


def _verdict(move: Move, *, shown: bool) -> Verdict:
    if not shown:
        return move.verdict
    worse = any(one.value < -MAX_LOSS_ELSEWHERE and one.below < SIGNIFICANCE for one in move.contrasts.values())
    return "worse elsewhere" if worse else "better"


def summary(moves: Sequence[Move]) -> str:
    """The accepted moves in one line, for a log or a terminal."""
    return "; ".join(_short_summary(move) for move in moves if move.accepted)


def _short_summary(move: Move) -> str:
    source, best = min(move.contrasts.items(), key=lambda pair: pair[1].above)
    if move.verdict == "explored":
        return f"{move.category} explores {move.target} ({move.current} fell by {best.value:.3f}, p = {best.above:.2g})"
    return f"{move.category} {move.current} -> {move.target} ({best.value:+.4f} on the {source}, p = {best.above:.2g})"
