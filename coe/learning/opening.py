"""Opens categories for exploration: where the chosen expert got worse, and the log has too few ratings of another one.

Exploration then collects the ratings that a later round needs to move the category. Arrays have n requests, m
categories and k experts.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray

from coe.learning.experience import Experience
from coe.learning.moves import MIN_RATED, Move, Served, shares, with_rows
from coe.learning.off_policy import greedy_policy, utility
from coe.learning.promotion import Contrast
from coe.planning.assignment import Assignment
from coe.planning.score_table import ScoreTable

Array = NDArray[np.float64]

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
