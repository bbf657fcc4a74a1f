"""Judges the moves of a candidate plan: a move assigns one category to another expert and needs evidence.

Evidence for a move is a gain on held-out probes or on logged traffic. Tests keep the family-wise error of a round (Holm
1979). `plan_candidate` uses it in the plan round of `coe retrain`. Arrays have n requests, m categories and k experts.

Opens categories for exploration: where the chosen expert got worse, and the log has too few ratings of another one.

Exploration then collects the ratings that a later round needs to move the category. Arrays have n requests, m
categories and k experts.

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
from coe.learning.off_policy import FOLDS, BanditLog, greedy_policy, policy_difference, utility
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
from coe.measuring.quality import Quality
from coe.planning.assignment import Assignment
from coe.planning.score_table import ScoreTable, tabulate_softly

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


MEASURED = "measured scores"
"""Name of the evidence that compares one expert's ratings with the measured scores of another."""
MAX_FLIPPED = 0.002
"""Largest share of all requests that may go to another expert when a category is opened for exploration."""
STEPS = (1.0, 0.75, 0.5, 0.25)
"""Steps from the current quality row towards the proposed one that are tried for an opened category."""
MIN_OPENED = 0.25
"""Share of a category's requests in which an opened category must make the expert eligible for exploration."""


def explored_moves(
    current: Assignment,
    rows: Array,
    served: Served,
    base: ScoreTable,
    *,
    traffic: Experience,
    rating_level: float,
    loss: float,
    excluded: Collection[str],
    level: float,
) -> tuple[tuple[Move, ...], Array]:
    """The categories to open for exploration, and the quality rows (m, k) that open them.

    A category is opened where its expert is rated significantly below what `base` measured of another expert, shifted
    by `rating_level`, and the log cannot show that one. The test is Welch's, with Bonferroni's correction over
    categories and experts. The category keeps its expert, so a wrong comparison costs no more than exploration does.
    Side effects on other requests are limited on the sample `traffic`, rated or not. Categories in `excluded` are left
    out.
    """
    likeliest, chosen = served.experience.posterior.argmax(axis=1), shares(current).argmax(axis=1)
    found, opening = [], rows.copy()
    for category, name in enumerate(current.categories):
        own = likeliest == category
        rewards = served.log.reward[own & (served.log.chosen == chosen[category])]
        if name in excluded or len(rewards) < MIN_RATED:
            continue
        drops = _drops(current, base, category, int(chosen[category]), rewards, rating_level=rating_level)
        limit = level / (len(current.categories) * max(len(drops), 1))
        if not any(drop.above < limit for drop in drops.values()):
            continue  # before the side effects are measured, which takes long
        row, opened = _opening_row(traffic, current, rows, category, loss)
        hidden = [expert for expert in drops if opened[expert] >= MIN_OPENED]
        if not hidden:
            continue
        target = max(hidden, key=lambda expert: base.mean[category, expert] - current.price[category, expert])
        if drops[target].above < limit:
            opening[category] = row
            names = name, current.experts[chosen[category]], current.experts[target]
            rated = int(served.rated[category, target])
            found.append(Move(*names, rated, 1.0, {MEASURED: drops[target]}, "explored"))
    return tuple(found), opening


def _opening_row(
    traffic: Experience, current: Assignment, rows: Array, category: int, loss: float
) -> tuple[Array, Array]:
    """The row nearest to the proposed one that sends at most MAX_FLIPPED of the traffic to another expert.

    Also returns the additional share of the category's requests in which each expert comes within `loss` of the best,
    shape (k,).
    """
    own, row, old = (
        traffic.posterior.argmax(axis=1) == category,
        current.quality[category],
        greedy_policy(traffic, current),
    )
    change = np.zeros_like(row)
    np.subtract(rows[category], row, out=change, where=np.isfinite(row))
    for step in STEPS:
        opened = with_rows(current, {category: row + step * change}, (category,))
        flipped = np.abs(greedy_policy(traffic, opened) - old).sum(axis=1).mean() / 2
        if flipped <= MAX_FLIPPED:
            return opened.quality[category], _opened(traffic.part(own), current, opened, loss)
    return row, np.zeros(len(current.experts))


def _opened(experience: Experience, old: Assignment, new: Assignment, loss: float) -> Array:
    """The additional share of requests in which each expert comes within `loss` of the best, shape (k,)."""
    within = [(value := utility(experience, one)) >= value.max(axis=1, keepdims=True) - loss for one in (old, new)]
    return np.asarray((within[1].sum(axis=0) - within[0].sum(axis=0)) / max(len(experience), 1))


def _drops(
    current: Assignment, base: ScoreTable, category: int, chosen: int, rewards: Array, *, rating_level: float
) -> dict[int, Contrast]:
    """Return, by measured expert, the drop of the chosen expert's ratings below it, less its price."""
    measured = np.flatnonzero(np.isfinite(current.quality[category]) & (base.count[category] >= MIN_RATED))
    return {
        int(expert): _drop(
            rewards,
            base,
            (category, int(expert)),
            rating_level=rating_level - float(current.price[category, expert] - current.price[category, chosen]),
        )
        for expert in measured
        if expert != chosen
    }


def _drop(rewards: Array, base: ScoreTable, cell: tuple[int, int], *, rating_level: float) -> Contrast:
    """Measured quality of a cell less the mean of `rewards`, by Welch's test."""
    from scipy.stats import t

    count = float(base.count[cell])
    parts = (max(float(base.variance[cell]), 0.01) / count, max(float(rewards.var(ddof=1)), 0.01) / len(rewards))
    error = float(np.sqrt(sum(parts)))
    degrees = sum(parts) ** 2 / (parts[0] ** 2 / max(count - 1, 1) + parts[1] ** 2 / (len(rewards) - 1))
    value = float(base.mean[cell]) + rating_level - float(rewards.mean())
    above = float(t.sf(value / error, degrees))
    return Contrast(value, error, above, 1.0 - above, len(rewards))


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
