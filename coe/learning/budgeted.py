"""Plans under the declared budget, for the mix of requests that an experience has."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from coe.learning.declared_problem import declared_problem
from coe.learning.experience import Experience
from coe.learning.refit import Refit
from coe.mapping import Assignment, Basis, Dependencies, Problem, rounded, solve
from coe.registry import Registry

Array = NDArray[np.float64]
SAMPLE = 4000
"""Requests whose posteriors the prices are fitted to."""


@dataclass(frozen=True, slots=True, eq=False)
class Budgeted:
    """By shrunk means, not by lower bounds as of measured scores: an expert that is little tried would lose by its
    bound alone, be explored no more, and stay unknown."""

    registry: Registry
    experience: Experience

    def __call__(self, refit: Refit) -> Assignment:
        """The plan by that quality."""
        basis = self.basis(refit)
        return solve(basis.problem, traffic=basis.traffic)

    def basis(self, refit: Refit) -> Basis:
        """What it is solved from."""
        seen = self.experience.posterior
        weights = np.maximum(seen.sum(axis=0, dtype=np.float64), 1.0)
        problem = declared_problem(self.registry, refit.table, quality=refit.quality, weights=weights)
        source = f"the feedback on {int(self.experience.rated.sum())} requests"
        count = refit.weighting.pseudo_count
        made_for = Dependencies.of(self.registry)
        return Basis(problem, refit.table, self._traffic(problem), 0.0, source, count, made_for)

    def _traffic(self, problem: Problem) -> Array | None:
        """None where no price depends on it."""
        if not problem.budget.rows().keys() - {"memory_gb"}:
            return None
        sample = np.random.default_rng(0).permutation(len(self.experience))[:SAMPLE]
        return rounded(self.experience.posterior[sample])
