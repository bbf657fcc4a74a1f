"""Judges the moves of a plan: a move assigns one category to another expert and needs evidence.

Evidence for a move is a stream of differences between both experts: held-out probes, which all experts answered, then
the rated requests of the category, weighted by their exact propensities (`coe.trials.evidence`). It is read at every
request, so the moves follow from the log alone: the same ones whether it is read in one round or in many.
`plan_candidate` uses it in the plan round of `coe retrain`. Arrays have n requests, m categories and k experts.

Splits measured quality in two: a part that a plan round learns from, and a held-out part that judges it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from coe.errors import DataError
from coe.learning.experience import Experience
from coe.learning.off_policy import greedy_policy
from coe.measuring.quality import Quality
from coe.planning.assignment import Assignment
from coe.planning.score_table import ScoreTable, tabulate_softly
from coe.trials.contrasts import SIGNIFICANCE, Contrast, paired_contrast
from coe.trials.evidence import log_evidence, weighted_differences
from coe.trials.judgement import HELD_OUT, LOGGED

Array = NDArray[np.float64]
Verdict = Literal["better", "not better", "thin support", "worse elsewhere", "breaks the budget"]

MIN_RATED = 10
"""Rated requests that an expert needs in a category before the log can show a move to it."""
MAX_UNSUPPORTED = 0.2
"""Largest share of a category's requests that the log could not have sent to the new expert."""
MIN_LEAD = 0.01
"""Minimum quality by which the other experts of a moved category stay behind the new one."""


@dataclass(frozen=True, slots=True)
class Move:
    """One category's move from the expert `current` to `target`.

    The verdict `better` accepts it. `contrasts` holds the gain in mean quality over all requests, by source of
    evidence; `chance` is the p-value of both together, valid however often the log is read. `rated` counts the rated
    requests of the category that `target` answered, and `decided` is the time (Unix seconds) of the request that showed
    the move.
    """

    category: str
    current: str
    target: str
    rated: int
    contrasts: Mapping[str, Contrast]
    chance: float = 1.0
    decided: float = 0.0
    verdict: Verdict = "not better"

    @property
    def accepted(self) -> bool:
        return self.verdict == "better"

    @property
    def sentence(self) -> str:
        """The move, its evidence and the verdict, for a report."""
        shown = ", ".join(f"{one.value:+.4f} ± {one.error:.4f} on the {name}" for name, one in self.contrasts.items())
        return (
            f"{self.category}: {self.current} -> {self.target}: {self.verdict}; {shown or 'no evidence'} "
            f"(p = {self.chance:.2g}); {self.rated} rated requests of {self.target} there"
        )


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


def open_cells(assignment: Assignment) -> NDArray[np.bool_]:
    """Cells (m, k) whose expert may serve the category, measured or not."""
    measured = np.isfinite(assignment.quality)
    return measured if assignment.unmeasured is None else measured | assignment.unmeasured


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


@dataclass(frozen=True, slots=True, eq=False)
class _Pair:
    """The comparison of `target` with the `expert` (a policy, (k,)) of a category, by probes and then by requests.

    `wealth` is the logarithm of the evidence after the probes and after each request of `rows`; -inf where it does not
    count: the log could hardly have sent the category there, or probes or requests alone show a loss until then.
    `probes` and `logged` are the differences.
    """

    expert: Array
    target: int
    rows: NDArray[np.int64]
    wealth: Array
    probes: Array
    logged: Array
    loses: bool


@dataclass(frozen=True, slots=True, eq=False)
class _Category:
    """Evidence on the moves of one category: its rated requests in their order, and the scores (n, k) of its probes."""

    index: int
    requests: Experience
    scores: Array
    price: Array

    def pair(self, expert: Array, target: int, start: int) -> _Pair:
        """Compare by the requests from index `start` on for which any of these experts could have been chosen."""
        contrast = np.eye(len(expert))[target] - expert
        charge = float(contrast @ self.price)
        supported = np.asarray((self.requests.propensities[:, np.flatnonzero(contrast)] > 0).all(axis=1))
        rows = start + np.flatnonzero(supported[start:])
        part = self.requests.part(rows)
        observed = part.chosen, part.reward.astype(np.float64), part.propensities.astype(np.float64)
        logged, least, _ = weighted_differences(*observed, contrast)
        probes = self.scores @ contrast - charge
        differences = np.concatenate((probes, logged - charge))
        bounds = np.concatenate((np.full(len(probes), -1.0), least)) - max(charge, 0.0)
        wealth = np.concatenate(([0.0], log_evidence(differences, bounds)))[len(probes) :]
        if len(rows):
            rated, reached = np.cumsum(part.chosen == target), np.arange(1, len(rows) + 1) / (rows - rows[0] + 1)
            wealth[1:][(rated < MIN_RATED) | (reached < 1.0 - MAX_UNSUPPORTED)] = -np.inf
        losses, bounds, _ = weighted_differences(*observed, -contrast)
        lost = log_evidence(losses + charge, bounds - max(-charge, 0.0)) > -np.log(SIGNIFICANCE)
        wealth[1:][lost] = -np.inf
        if paired_contrast(probes).below < SIGNIFICANCE:
            wealth[:] = -np.inf
        loses = bool(lost[-1:].any()) or not np.isfinite(wealth[0])
        return _Pair(expert, target, rows, wealth, probes, logged - charge, loses)

    def shown(self, expert: Array, challengers: Sequence[int], needed: float) -> tuple[_Pair, int] | None:
        """The last expert that was shown better than the one before it, from `expert` on, with the number of requests
        that had been read. Each one is compared by the requests after it was shown."""
        start, last = 0, None
        for _ in range(len(self.requests) + 1):
            shown = list[tuple[int, float, _Pair]]()
            for target in (one for one in challengers if expert[one] < 1.0):
                pair = self.pair(expert, target, start)
                crossed = np.flatnonzero(pair.wealth >= needed)
                if len(crossed):
                    place = int(pair.rows[crossed[0] - 1]) + 1 if crossed[0] else start
                    shown.append((place, -float(pair.wealth[crossed[0]]), pair))
            if not shown:
                return last
            start, _, pair = min(shown, key=lambda found: found[:2])
            last, expert = (pair, start), np.eye(len(expert))[pair.target]
        return last


def judged_moves(
    current: Assignment,
    quality: Array,
    trusted: Experience,
    *,
    probes: HeldOutProbes | None = None,
    since: Mapping[str, float] = MappingProxyType({}),
) -> tuple[Move, ...]:
    """The moves that the `trusted` requests and the probes show, and those that the refitted `quality` (m, k) proposes.

    All pairs of a category and another expert share the level SIGNIFICANCE, for as long as the log is read. `since` is
    the time (Unix seconds) by category of the request that showed the last move there; only later ones count.
    """
    is_open, policy = open_cells(current), shares(current)
    tests = int(np.maximum(is_open.sum(axis=1) - 1, 1).sum())
    value, found = np.where(is_open, quality - current.price, -np.inf), list[Move]()
    likeliest = trusted.posterior.argmax(axis=1)
    for index, name in enumerate(current.categories):
        own = (likeliest == index) & (trusted.time > since.get(name, -np.inf))
        scores = np.zeros((0, len(current.experts)))
        if probes is not None:
            scores = probes.scores[probes.seen.posterior.argmax(axis=1) == index]
        category = _Category(index, trusted.part(own), scores, current.price[index])
        challengers = np.flatnonzero(is_open[index] & (policy[index] < 1.0)).tolist()
        everyone = np.flatnonzero(is_open[index]).tolist()
        shown = category.shown(policy[index], everyone, float(np.log(tests / SIGNIFICANCE))) if challengers else None
        if shown is not None and policy[index, shown[0].target] < 1.0:
            time = float(category.requests.time[shown[1] - 1]) if shown[1] else since.get(name, 0.0)
            found.append(_move(current, category, shown[0], trusted, time, "better"))
        elif shown is None and challengers and policy[index, best := int(value[index].argmax())] < 1.0:
            pair = category.pair(policy[index], best, 0)
            thin = not np.isfinite(pair.wealth[-1]) and not len(pair.probes)
            verdict: Verdict = "worse elsewhere" if pair.loses else "thin support" if thin else "not better"
            found.append(_move(current, category, pair, trusted, 0.0, verdict))
    return tuple(found)


def _move(
    current: Assignment, category: _Category, pair: _Pair, trusted: Experience, decided: float, verdict: Verdict
) -> Move:
    contrasts = dict[str, Contrast]()
    for source, gains, total in ((HELD_OUT, pair.probes, len(pair.probes)), (LOGGED, pair.logged, len(trusted))):
        if len(gains):
            error = float(gains.std()) * len(gains) ** 0.5 / total
            contrasts[source] = Contrast(float(gains.sum()) / total, error, 1.0, 1.0, len(gains))
    return Move(
        current.categories[category.index],
        current.experts[int(shares(current)[category.index].argmax())],
        current.experts[pair.target],
        int((category.requests.chosen[pair.rows] == pair.target).sum()),
        contrasts,
        float(np.exp(-max(pair.wealth.max(initial=0.0), 0.0))),
        decided,
        verdict,
    )


def summary(moves: Sequence[Move]) -> str:
    """The accepted moves in one line, for a log or a terminal."""
    return "; ".join(
        f"{move.category} {move.current} -> {move.target} ({gain.value:+.4f} on the {source}, p = {move.chance:.2g})"
        for move in moves
        if move.accepted
        for source, gain in list(move.contrasts.items())[-1:]
    )


HELD_OUT_SHARE = 0.3
"""Share of the prompts in the held-out part."""

Posteriors = Callable[[Sequence[str]], NDArray[np.float32]]
"""Returns the router's posteriors of texts, shape (n, m)."""


def split_probes(
    data: Quality,
    *,
    categories: Sequence[str],
    experts: Sequence[str],
    posteriors: Posteriors,
    arms: Mapping[str, Array] = MappingProxyType({}),
) -> tuple[ScoreTable, HeldOutProbes]:
    """The score table of the larger part, and the rest as held-out probes.

    A digest of the prompt decides its part, so that it is the same in every round. `arms` are the scores of further
    columns, shape (n_prompts,), NaN where a prompt was not measured; it is then not a held-out probe. Raises DataError
    where an expert has no scores, a category is not declared, or the set is too small to split.
    """
    if absent := [name for name in experts if name not in data.models]:
        raise DataError(f"probes: no scores of {', '.join(absent)}; run `coe score` for them")
    if unknown := sorted(set(data.categories) - set(categories)):
        raise DataError(f"probes: categories that experts.yaml does not declare: {', '.join(unknown)}")
    is_held = np.array([is_held_out(prompt, share=HELD_OUT_SHARE) for prompt in data.prompts])
    if is_held.all() or not is_held.any():
        raise DataError(f"probes: {len(is_held)} prompts cannot be split in two; score more")
    scores = np.column_stack((data.scores[:, [data.models.index(name) for name in experts]], *arms.values()))
    columns, is_complete = (*experts, *arms), np.isfinite(scores).all(axis=1)
    if not (is_held & is_complete).any():
        raise DataError("probes: no held-out prompt has recorded answers of all experts; run `coe score` again")
    labels = np.array(data.categories, dtype=object)
    member = labels[:, None] == np.array(categories, dtype=object)
    table = tabulate_softly(categories, columns, member[~is_held], scores[~is_held])
    is_held &= is_complete
    texts = [prompt for prompt, judges in zip(data.prompts, is_held, strict=True) if judges]
    seen = replace(Experience.blank(categories, columns, len(texts)), posterior=posteriors(texts))
    return table, HeldOutProbes(seen, scores[is_held], tuple(labels[is_held].tolist()))


def is_held_out(prompt: str, *, share: float) -> bool:
    """Return whether a prompt belongs to the held-out part, a fixed property of its text."""
    digest = hashlib.blake2b(prompt.encode("utf-8", "replace"), digest_size=8, person=b"coe held").digest()
    return int.from_bytes(digest) < share * 2**64
