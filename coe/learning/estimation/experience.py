"""Experience: the routing log joined with its feedback, as arrays that estimates and fits read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coe.feedback import KINDS
from coe.learning.feedback import RATINGS, WEIGHT

NONE = -1
"""In a column of indices: nothing."""
_WEIGHTS = np.array([*(WEIGHT[kind] for kind in KINDS), 0.0])  # the last is for NONE
_RATED = np.array([*(kind in RATINGS for kind in KINDS), False])


@dataclass(frozen=True, slots=True, eq=False)
class Experience:
    """n requests in the order they were logged, m categories, k experts. Indices are into the tuples of names.

    `posterior` (n, m) float32; `chosen` (n,), the expert that answered; `allowed` (n, k), those that could have;
    `propensity` (n,), the probability with which it was chosen, NaN where expected quality did not decide (pinned,
    sticky, uncertain, spilled, fallback): such requests teach, but say nothing about other policies. `reward` (n,) is
    0 to 1, NaN without feedback; `kind` (n,) the index into KINDS of the feedback that it comes from; `corrected` (n,)
    the category that somebody says it is; `tenant` and `version` (of router and configuration) (n,); `time` (n,) in
    Unix seconds; `identity` (n,) the digest of the request's id. Indices are NONE where there is nothing.
    """

    categories: tuple[str, ...]
    experts: tuple[str, ...]
    tenants: tuple[str, ...]
    versions: tuple[str, ...]
    posterior: NDArray[np.float32]
    chosen: NDArray[np.int16]
    allowed: NDArray[np.bool_]
    propensity: NDArray[np.float32]
    reward: NDArray[np.float32]
    kind: NDArray[np.int8]
    corrected: NDArray[np.int16]
    tenant: NDArray[np.int32]
    version: NDArray[np.int32]
    time: NDArray[np.float64]
    identity: NDArray[np.uint64]

    def __len__(self) -> int:
        return len(self.chosen)

    @property
    def weight(self) -> NDArray[np.float64]:
        """How much each request's feedback counts, shape (n,): 1 for a score, 0 without any.

        Implicit signals only complain, and there are as many of them as an expert has requests. So each counts by the
        share of rated ones among the requests of its expert and likeliest category: what it takes off a mean goes by
        how often there was a complaint, not by how busy the expert is; and nothing rests on complaints alone.
        """
        cell = self.posterior.argmax(axis=1) * len(self.experts) + self.chosen
        count = len(self.categories) * len(self.experts)
        served, rated = np.bincount(cell, minlength=count), np.bincount(cell[self.rated], minlength=count)
        share = rated / np.maximum(served, 1)
        return np.asarray(_WEIGHTS[self.kind] * np.where(self.rated, 1.0, share[cell]))

    @property
    def rated(self) -> NDArray[np.bool_]:
        """Requests that somebody rated, shape (n,). Implicit signals only complain, so no mean may rest on them."""
        return np.asarray(_RATED[self.kind])

    @property
    def telling(self) -> NDArray[np.bool_]:
        """Requests that an estimate of another policy may use, shape (n,): rated, and with a known propensity."""
        return np.asarray(self.rated & (self.propensity > 0))

    def by_tenant(self, among: NDArray[np.bool_]) -> Iterator[tuple[int, NDArray[np.int64]]]:
        """Each tenant's index and the rows of its requests that the mask names, in their order; none without any."""
        rows = np.flatnonzero(among)
        rows = rows[np.argsort(self.tenant[rows], kind="stable")]
        for part in np.split(rows, np.flatnonzero(np.diff(self.tenant[rows])) + 1):
            if len(part):
                yield int(self.tenant[part[0]]), part

    def part(self, rows: NDArray[np.bool_] | NDArray[np.int64]) -> Experience:
        """The requests that a mask or an array of indices names."""
        columns = ((f.name, getattr(self, f.name)) for f in fields(self))
        chosen: dict[str, Any] = {name: column[rows] for name, column in columns if isinstance(column, np.ndarray)}
        return replace(self, **chosen)
