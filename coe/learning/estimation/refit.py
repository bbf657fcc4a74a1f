"""Refits the score table from experience: each expert's quality in each category, by feedback and measured scores."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from coe.learning.estimation.evidence import level_difference, merged, score_table
from coe.learning.estimation.experience import Experience
from coe.learning.estimation.trust import Agreement, agreements
from coe.mapping.score_table import PSEUDO_COUNT, ScoreTable

Array = NDArray[np.float64]
DAY_SECONDS = 86_400.0
MAX_PSEUDO_COUNT = 30.0
"""Largest pseudo-count of scores when feedback exists. Experts may since differ by category, not only in level."""


@dataclass(frozen=True, slots=True)
class Weighting:
    """The weight of a request's feedback.

    `half_life` is in days, since experts and users change. `clip` is the largest inverse propensity; 1 ignores
    propensities. Within a category explored requests represent all others, and count more by it; beyond the clip the
    noise of a few would cost more than the bias that they remove. `share` is the largest part of one tenant in a cell.
    `free` is the number of scores that are always allowed.
    """

    half_life: float = 30.0
    clip: float = 3.0
    share: float = 0.5
    free: float = 30.0
    pseudo_count: float = PSEUDO_COUNT


@dataclass(frozen=True, slots=True, eq=False)
class Refit:
    """The score table of experience and measurement together, and how far tenants agree.

    `feedback` is the part of the table that comes from feedback. `level` is the level of feedback less that of the
    measured scores; 0 without measured scores.
    """

    table: ScoreTable
    agreements: tuple[Agreement, ...]
    weighting: Weighting
    feedback: ScoreTable
    level: float

    @property
    def quality(self) -> Array:
        """Shrunk quality by category and expert, shape (m, k)."""
        return self.table.shrunk(pseudo_count=self.weighting.pseudo_count)

    def lower(self, *, deviations: float) -> Array:
        """Lower confidence bounds of the quality."""
        return self.table.lower(deviations=deviations, pseudo_count=self.weighting.pseudo_count)


def trust_of(experience: Experience, found: tuple[Agreement, ...]) -> Array:
    """The trust in each request's tenant, shape (n,); 1 where nothing speaks against it."""
    by_name = {agreement.tenant: agreement.trust for agreement in found}
    trust = np.array([by_name.get(tenant, 1.0) for tenant in experience.tenants])
    return np.asarray(trust[experience.tenant])


def refit(
    experience: Experience,
    *,
    now: float,
    base: ScoreTable | None = None,
    weighting: Weighting | None = None,
    found: tuple[Agreement, ...] | None = None,
) -> Refit:
    """The table that the experience up to `now` (Unix seconds) supports.

    `base` is measured quality (`coe score`), over the same categories and experts. `found` are agreements that are
    known already, for refits of parts of one experience.
    """
    rule = weighting or Weighting()
    known = agreements(experience, base=base) if found is None else found
    age = np.maximum(now - experience.time, 0.0) / DAY_SECONDS
    utility = experience.weight * np.exp2(-age / rule.half_life) * trust_of(experience, known)
    propensity = np.where(experience.propensity > 0, experience.propensity, 1.0)
    importance = np.minimum(1.0 / propensity, rule.clip)
    table = score_table(experience, utility, importance, share=rule.share, free=rule.free)
    if base is None:
        return Refit(table, known, rule, table, 0.0)
    return Refit(merged(table, base), known, rule, table, level_difference(table, base))
