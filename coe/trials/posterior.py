"""Posterior of the quality of each category and expert, from few or many scores (empirical Bayes).

A cell of a score table is a category and an expert. An expert has a usual quality, from which a category departs alike
for all experts. The prior of a cell is a mixture: Beta distributions about the usual quality, from "departs much" to
"not at all", and one for specialists, about the quality of the category's best expert. The usual quality is integrated
over a grid and the shares of the mixture are fitted to the table. So the scores of a category inform about the expert's
other categories, a few scores cannot rank a weak expert above a strong one, and yet a specialist keeps a chance.
Adaptive shrinkage: Stephens 2017, doi:10.1093/biostatistics/kxw041.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
LEAST = 0.02
"""Distance of a prior's quality from 0 and 1."""
GRID = np.linspace(LEAST, 1 - LEAST, 25)
"""Usual qualities of an expert."""
STRENGTHS = np.array([4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 1e6, 5.0])
"""Strength of each part of the mixture, in scores; the last is that of specialists. The variance of a cell's quality q
about the prior's quality c is c (1 - c) / (strength + 1)."""
ASSUMED_CELLS = np.ones(len(STRENGTHS))
"""Cells of each part that count beside those of the table, so that no part is ruled out."""
FITS, STEPS = 3, 8
"""Fits of the categories' departures and the mixture in turn, and steps of expectation maximisation in each."""
DEPARTURE_STRENGTH, MAX_RIDGE = 30.0, 60.0
"""Scores after which more of a cell say little about its category, and most scores that shrink a departure."""


@dataclass(frozen=True, slots=True, eq=False)
class Posterior:
    """Qualities by category and expert: for each usual quality on the grid, a mixture of Beta distributions.

    `usual`, shape (n_grid, n_experts), is the probability of each usual quality. `share`, `right` and `wrong` are those
    of the mixtures, shape (n_grid, n_categories, n_experts, n_parts). `mean` has shape (n_categories, n_experts),
    `covariance` of the categories of an expert (n_experts, n_categories, n_categories). `strength` is that of the
    fitted prior.
    """

    usual: Array
    share: Array
    right: Array
    wrong: Array
    mean: Array
    covariance: Array
    strength: float

    @property
    def variance(self) -> Array:
        return np.asarray(np.diagonal(self.covariance, axis1=1, axis2=2).T)

    def draw(self, count: int) -> Array:
        """Draw qualities, shape (count, n_categories, n_experts); equal calls give equal draws."""
        rng = np.random.default_rng(0)
        drawn = np.empty((count, *self.mean.shape))
        for expert in range(drawn.shape[2]):
            row = rng.choice(len(self.usual), size=count, p=self.usual[:, expert])
            share, right, wrong = (values[row, :, expert] for values in (self.share, self.right, self.wrong))
            part = (rng.random((*share.shape[:2], 1)) > share.cumsum(axis=2)[..., :-1]).sum(axis=2, keepdims=True)
            drawn[..., expert] = rng.beta(*(np.take_along_axis(values, part, 2)[..., 0] for values in (right, wrong)))
        return drawn


def posterior_of(mean: Array, variance: Array, count: Array, noise: Array | float = 1.0) -> Posterior:
    """Return the posterior of a table of scores: their mean (NaN without any), variance and number in each cell.

    `noise` is the variance of a score in comparisons of experts, over that of a score alone.
    """
    from scipy.special import betaln

    mean, is_scored = np.nan_to_num(mean), count > 0
    count = count / (noise * _noise(mean, np.nan_to_num(variance), count))
    seen, missed = count * mean, count * (1 - mean)
    share_of_part = ASSUMED_CELLS / ASSUMED_CELLS.sum()
    usual_mean = (seen.sum(axis=0) + 1) / (count.sum(axis=0) + 2)
    size, best = count / (1 + count / DEPARTURE_STRENGTH), np.full(len(mean), usual_mean.max())
    is_usual = np.ones(count.shape)
    for _ in range(FITS):
        departure = _departures(mean - usual_mean, size * is_usual, usual_mean)
        centre = np.clip(GRID[:, None] + departure, LEAST, 1 - LEAST)
        centres = np.stack([*[centre] * (len(STRENGTHS) - 1), np.broadcast_to(best, centre.shape)], axis=2)
        right, wrong = (STRENGTHS * values[:, :, None] for values in (centres, 1 - centres))
        fit = betaln(right + seen[..., None], wrong + missed[..., None]) - betaln(right, wrong)
        for _ in range(STEPS):
            share = fit + np.log(share_of_part)
            largest = share.max(axis=3)
            share = np.exp(share - largest[..., None])
            evidence = (np.log(share.sum(axis=3)) + largest).sum(axis=1)
            usual = np.exp(evidence - evidence.max(axis=0))
            usual /= usual.sum(axis=0)
            share /= share.sum(axis=3, keepdims=True)
            parts = np.einsum("gk,gmkp->mkp", usual, share)
            share_of_part = ASSUMED_CELLS + parts[is_scored].sum(axis=0)
            share_of_part /= share_of_part.sum()
        is_usual, usual_mean = 1 - parts[..., -1], GRID @ usual
        best = np.clip((usual_mean + departure[:, None]).max(axis=1), LEAST, 1 - LEAST)
    right, wrong = right + seen[..., None], wrong + missed[..., None]
    of_part = right / (right + wrong)
    of_grid = (share * of_part).sum(axis=3)
    square = (share * (of_part * (1 - of_part) / (right + wrong + 1) + of_part**2)).sum(axis=3)
    estimate = np.einsum("gk,gmk->mk", usual, of_grid)
    off = of_grid - estimate
    covariance = np.einsum("gk,gik,gjk->kij", usual, off, off)
    own = np.arange(len(mean))
    covariance[:, own, own] = (np.einsum("gk,gmk->mk", usual, square) - estimate**2).T
    strength = float(1 / (share_of_part / STRENGTHS).sum())
    return Posterior(usual, share, right, wrong, estimate, covariance, strength)


def _noise(mean: Array, variance: Array, count: Array) -> float:
    """Return the variance of single scores over that of right and wrong answers; partial scores vary less."""
    expected, actual = float((np.maximum(count - 1, 0.0) * mean * (1 - mean)).sum()), float((count * variance).sum())
    return float(np.clip(actual / expected, 0.05, 1.0)) if expected > 0 and actual > 0 else 1.0


def _departures(distance: Array, size: Array, usual: Array) -> Array:
    """Return by how much each category departs from the usual qualities of all experts, shrunk to 0.

    `distance`, shape (n_categories, n_experts), is that of the scores' means, and `size` what each of them counts.
    """
    total, noise = size.sum(axis=1), float((usual * (1 - usual)).mean())
    departure = (size * distance).sum(axis=1)
    between = float(((departure / np.maximum(total, 1e-9)) ** 2 - noise / np.maximum(total, 1)).mean())
    departure /= total + min(noise / max(between, 1e-3), MAX_RIDGE)
    return np.asarray(departure - departure.mean())
