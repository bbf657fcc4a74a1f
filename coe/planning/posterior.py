"""Posterior of the quality of each category and expert, from few or many scores (empirical Bayes).

A cell of a score table is a category and an expert. Its prior is centred on an effect of the expert plus one of the
category, and is a mixture of Beta distributions of fixed strengths, from "any quality" to "no difference". The weights
of the strengths are fitted to the table: they say how much experts differ by category, and how many specialists there
are. So a few scores cannot rank a weak expert above a strong one, and yet a specialist keeps a chance.
Adaptive shrinkage: Stephens 2017, doi:10.1093/biostatistics/kxw041.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from coe.planning.score_table import ScoreTable

Array = NDArray[np.float64]
STRENGTHS = np.array([2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 1e6])
"""Strengths of the prior, in scores: the variance of a cell's quality q around its centre c is c (1 - c) / strength."""
RARE = 1.0
"""Cells that each strength is assumed to have beside those of the table, so that none is ruled out."""
FITS, STEPS = 3, 30
"""Fits of centre and weights in turn, and the steps of each: of backfitting, and of expectation maximisation."""
MAX_RIDGE = 30.0
"""Most scores that shrink an effect."""
LEAST_CENTRE = 0.02
"""Distance of a centre from 0 and 1."""


@dataclass(frozen=True, slots=True, eq=False)
class Posterior:
    """Mixtures of Beta distributions, shape (n_categories, n_experts, n_strengths), and the fitted `strength`.

    `level_variance`, shape (n_categories, n_experts), is that of what all experts of a category share, which no choice
    between them depends on.
    """

    weight: Array
    right: Array
    wrong: Array
    level_variance: Array
    strength: float

    @property
    def mean(self) -> Array:
        return np.asarray((self.weight * self.right / (self.right + self.wrong)).sum(axis=2))

    @property
    def variance(self) -> Array:
        """Variance that matters for a choice between experts."""
        total = self.right + self.wrong
        mean = self.right / total
        square = mean * (1 - mean) / (total + 1) + mean**2
        return np.asarray(np.maximum((self.weight * square).sum(axis=2) - self.mean**2, 0.0))

    @property
    def error(self) -> Array:
        """Standard error of the quality itself."""
        return np.asarray(np.sqrt(self.variance + self.level_variance))

    def draw(self, count: int) -> Array:
        """Draw qualities, shape (count, n_categories, n_experts); equal calls give equal draws."""
        rng = np.random.default_rng(0)
        place = (rng.random((count, *self.weight.shape[:2], 1)) > self.weight.cumsum(axis=2)[..., :-1]).sum(axis=3)
        right, wrong = (np.take_along_axis(one[None], place[..., None], 3)[..., 0] for one in (self.right, self.wrong))
        return np.asarray(rng.beta(right, wrong))


def posterior_of(table: ScoreTable, noise: tuple[float, float] = (1.0, 1.0)) -> Posterior:
    """Return the posterior of a table's cells; `noise` is that of its scores (`noise_of`)."""
    from scipy.special import betaln

    total, paired = noise
    count = table.count / (total * paired)
    seen = count * np.nan_to_num(table.mean)
    weights = np.full(len(STRENGTHS), 1 / len(STRENGTHS))
    share = np.broadcast_to(weights, (*count.shape, len(weights)))
    for _ in range(FITS):
        size = (share * count[..., None] / (1 + count[..., None] / STRENGTHS)).sum(axis=2)
        centre, known = _centre(np.nan_to_num(table.mean), size)
        prior = 1 / (1 / STRENGTHS + 1 / known[None, :, None])
        right, wrong = prior * centre[..., None], prior * (1 - centre[..., None])
        fit = betaln(right + seen[..., None], wrong + (count - seen)[..., None]) - betaln(right, wrong)
        fit = np.exp(fit - fit.max(axis=2, keepdims=True))
        for _ in range(STEPS):
            share = weights * fit
            share /= share.sum(axis=2, keepdims=True)
            weights = RARE + share[table.count > 0].sum(axis=0)
            weights /= weights.sum()
        strength = float(1 / (weights / STRENGTHS).sum())
    mean = np.nan_to_num(table.mean)
    level = np.divide(total * (1 - paired) * mean * (1 - mean), table.count, out=np.zeros_like(mean), where=count > 0)
    return Posterior(share, right + seen[..., None], wrong + (count - seen)[..., None], level, strength)


def _centre(mean: Array, size: Array) -> tuple[Array, Array]:
    """Return the additive estimate of each cell, and the size of each expert's part, shape (n_experts,).

    `size` is that of each cell. Backfitting shrinks the effects, by the more scores the smaller they are.
    """
    level = float((size * mean).sum() / max(size.sum(), 1e-12))
    noise, ridge = level * (1 - level), [1.0, 1.0]
    effects = [np.zeros((len(mean), 1)), np.zeros((1, mean.shape[1]))]
    sizes = [size.sum(axis=1, keepdims=True), size.sum(axis=0, keepdims=True)]
    for step in range(2 * STEPS):
        own = 1 - step % 2  # experts first
        total = (size * (mean - level - effects[1 - own])).sum(axis=1 - own, keepdims=True)
        effects[own] = total / (sizes[own] + ridge[own])
        used = sizes[own] > 0
        between = (effects[own][used] ** 2 - noise / np.maximum(sizes[own][used], 1)).mean() if used.any() else 0.0
        ridge[own] = min(noise / max(float(between), 1e-3), MAX_RIDGE)
    centre = level + effects[0] + effects[1]
    return np.clip(centre, LEAST_CENTRE, 1 - LEAST_CENTRE), sizes[1][0] + ridge[1]


LEVEL = 0.02
"""Expected quality that a cheaper expert may lack where the scores do not show that the other is better."""


def credited(quality: Array, variance: Array, cost: Array) -> Array:
    """Return the quality that a plan credits: its mean, but for a dear expert less than that of a cheaper level one.

    An expert is level with the best one of its category if it is within LEVEL of it, and within one standard error of
    the difference. So of level experts the cheapest serves. All arrays have shape (n_categories, n_experts); quality is
    -inf where an expert may not serve.
    """
    rows = np.arange(len(quality))
    best = quality.argmax(axis=1)
    gap = quality[rows, best][:, None] - quality
    level = (gap <= LEVEL) & (gap**2 <= variance + variance[rows, best][:, None])
    cheapest = np.where(level, np.nan_to_num(cost, nan=np.inf), np.inf).argmin(axis=1)
    is_dearer = cost > cost[rows, cheapest][:, None]
    return np.where(is_dearer, np.minimum(quality, quality[rows, cheapest][:, None] - 1e-6), quality)
