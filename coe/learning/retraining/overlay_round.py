"""Fitting overlays: a tenant's own light head on top of the global router, kept only while it helps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from coe.learning.estimation.experience import NONE, Experience
from coe.learning.estimation.experience_loader import UNTENANTED, identity
from coe.learning.retraining.promotion import Contrast, held_out
from coe.records.record import RoutingRecord
from coe.routing.overlay import Overlay, log_posterior, softmax

Array = NDArray[np.float64]
Verdict = Literal["new", "fitted anew", "kept", "dropped", "not better"]

FEWEST = 60
"""Requests that a tenant's head takes, and corrections among them below."""
CORRECTED = 10
MOST = 5_000
"""Requests of a tenant that a head is fitted to, the newest."""
HELD = 0.3
"""Newest share of them that judges and does not teach."""
PENALTY = 0.02
"""Pull of the head towards doing nothing, against the mean loss of a request."""
LIKED = 0.75
"""Reward from which on a request that nobody corrected counts as classified rightly."""
SILENT = 0.2
"""How much a request counts as classified rightly of which nobody said anything, a liked or corrected one being 1. Few
people correct what is wrong; but were silence nothing, a handful of corrections would carry a whole category away."""
CHANCE = 0.01
"""Chance that any tenant of all of them gets a head by luck, in one look; and that one that helps is dropped."""
GROWTH = 2
"""A head that helps is fitted anew where the tenant has so many times the requests that it was fitted to."""
REMEMBERED = 500_000
"""Requests whose plain posterior is remembered, the newest; some 300 bytes each."""


@dataclass(frozen=True, slots=True)
class Tried:
    """What became of one tenant's head; `overlay` is the one to use, None where there is none. `contrast` is the head
    less the router alone on requests that it was not fitted to, None where none told of it."""

    tenant: str
    verdict: Verdict
    requests: int
    corrected: int
    contrast: Contrast | None
    overlay: Overlay | None

    @property
    def sentence(self) -> str:
        """For a report."""
        judged = "nothing is new"
        if self.contrast is not None:
            judged = (
                f"{self.contrast.value:+.3f} ± {self.contrast.error:.3f} right on {self.contrast.requests} requests"
            )
        return f"{self.tenant}: {self.verdict} ({judged}; {self.corrected} of {self.requests} corrected)"


class Plain:
    """Looks at pages of records that pass through, and remembers the router's own posterior where an overlay made
    another of it."""

    def __init__(self, categories: Sequence[str]) -> None:
        self._categories = tuple(categories)
        self._found: dict[int, NDArray[np.float32]] = {}

    def watched(self, pages: Iterator[Sequence[RoutingRecord]]) -> Iterator[Sequence[RoutingRecord]]:
        """The same pages."""
        for page in pages:
            for record in page:
                if record.plain is not None:
                    if len(self._found) >= REMEMBERED:
                        del self._found[next(iter(self._found))]
                    row = [record.plain.get(name, 0.0) for name in self._categories]
                    self._found[identity(record.request_id)] = np.array(row, dtype=np.float32)
            yield page

    def posterior(self, experience: Experience) -> NDArray[np.float32]:
        """What the router alone said of each request, shape (n, m)."""
        posterior = experience.posterior.copy()
        for row, name in enumerate(experience.identity.tolist()):
            if name in self._found:
                posterior[row] = self._found[name]
        return posterior


def candidates(experience: Experience) -> frozenset[str]:
    """The tenants who have said enough for a head of their own. Requests without a key belong to nobody in
    particular."""
    count = len(experience.tenants)
    requests = np.bincount(experience.tenant, minlength=count)
    corrected = np.bincount(experience.tenant[experience.corrected != NONE], minlength=count)
    enough = (requests >= FEWEST) & (corrected >= CORRECTED)
    return frozenset(np.array(experience.tenants, dtype=object)[enough]) - {UNTENANTED}


def try_overlays(
    experience: Experience,
    plain: NDArray[np.floating] | None = None,
    *,
    in_use: Mapping[str, Overlay] = MappingProxyType({}),
) -> tuple[Tried, ...]:
    """Judge every tenant's head, by its own requests alone; of a tenant in neither group nothing is said.

    `plain` (n, m) is what the router alone said; the experience's posterior is what was served. A head learns from
    corrected categories, and to leave alone what was liked, or passed without a word (SILENT). It comes into use where
    it surely is right more often than the router alone on the newest of these requests, which it was not fitted to (a
    randomisation test, corrected for the number of tenants); then it is fitted to all. It stays until it surely is
    wrong more often on the requests since then; then it must come in anew, or is gone.
    """
    router = experience.posterior if plain is None else plain
    known = _Known.of(experience, router)
    wanted = candidates(experience)
    found = []
    for number, rows in experience.by_tenant(known.weight > 0):
        tenant = experience.tenants[number]
        overlay = in_use.get(tenant)
        if overlay is not None or tenant in wanted:
            part = known.part(rows[np.argsort(experience.time[rows], kind="stable")][-MOST:])
            found.append(_tried(tenant, experience.categories, part, overlay, chance=CHANCE / max(len(wanted), 1)))
    silent = in_use.keys() - {one.tenant for one in found}
    found += [Tried(tenant, "kept", 0, 0, None, in_use[tenant]) for tenant in silent]
    return tuple(sorted(found, key=lambda one: one.tenant))


@dataclass(frozen=True, slots=True, eq=False)
class _Known:
    """Requests whose category is known more or less, oldest first: the router's posterior (n, m), the category, how
    much it counts, whether somebody said it, and when the request came."""

    posterior: Array
    label: NDArray[np.int64]
    weight: Array
    said: NDArray[np.bool_]
    time: Array

    @classmethod
    def of(cls, experience: Experience, router: NDArray[np.floating]) -> _Known:
        said = experience.corrected != NONE
        liked = experience.rated & (experience.reward >= LIKED)
        weight = np.where(said | liked, 1.0, np.where(experience.kind == NONE, SILENT, 0.0))
        label = np.where(said, experience.corrected, experience.posterior.argmax(axis=1)).astype(np.int64)
        return cls(router.astype(np.float64), label, weight, said, experience.time)

    def part(self, rows: NDArray[np.int64] | NDArray[np.bool_] | slice) -> _Known:
        return _Known(self.posterior[rows], self.label[rows], self.weight[rows], self.said[rows], self.time[rows])

    @property
    def corrected(self) -> int:
        return int(self.said.sum())

    def contrast(self, head: Overlay) -> Contrast:
        """The head less the router alone: how much more often right."""
        old, new = (
            (guess.argmax(axis=1) == self.label) * self.weight for guess in (self.posterior, head.apply(self.posterior))
        )
        return held_out(old, new, [""] * len(self.label)).overall


def _tried(tenant: str, categories: tuple[str, ...], known: _Known, overlay: Overlay | None, *, chance: float) -> Tried:
    count, harms, since = len(known.label), False, None

    def verdict(said: Verdict, contrast: Contrast | None, head: Overlay | None) -> Tried:
        return Tried(tenant, said, count, known.corrected, contrast, head)

    if overlay is not None:
        newer = known.part(known.time > overlay.fitted_until)
        since = newer.contrast(overlay) if len(newer.label) else None
        harms = since is not None and since.below < CHANCE
        grown = overlay.requests < MOST and count >= min(GROWTH * overlay.requests, MOST)
        if not harms and not grown:
            return verdict("kept", since, overlay)
    contrast, head = _entry(tenant, categories, known, chance=chance)
    if head is not None:
        return verdict("new" if overlay is None else "fitted anew", contrast, head)
    if overlay is None:
        return verdict("not better", contrast, None)
    return verdict("dropped", since, None) if harms else verdict("kept", since, overlay)


def _entry(
    tenant: str, categories: tuple[str, ...], known: _Known, *, chance: float
) -> tuple[Contrast | None, Overlay | None]:
    """How a head does on the newest requests, fitted to those before; fitted to all of them where it may come in."""
    count = len(known.label)
    if count < FEWEST or known.corrected < CORRECTED:
        return None, None
    early = count - round(HELD * count)
    head = _fitted(tenant, categories, known.part(slice(early)), gain=0.0)
    contrast = known.part(slice(early, None)).contrast(head)
    if contrast.above >= chance:
        return contrast, None
    return contrast, _fitted(tenant, categories, known, gain=contrast.value)


def _fitted(tenant: str, categories: tuple[str, ...], known: _Known, *, gain: float) -> Overlay:
    """Multinomial logistic regression from log posteriors to categories, pulled towards the identity: requests that
    nobody corrected pull towards what the router says of them."""
    from scipy.optimize import minimize

    inputs, size = log_posterior(known.posterior), known.posterior.shape[1]
    agreed = known.posterior.argmax(axis=1) == known.label
    wanted = np.where((~known.said & agreed)[:, None], known.posterior, np.eye(size)[known.label])
    weight = (known.weight / known.weight.sum())[:, None]
    neutral = np.append(np.eye(size).ravel(), np.zeros(size))

    def loss(flat: Array) -> tuple[float, Array]:
        guess = softmax(inputs @ flat[:-size].reshape(size, size) + flat[-size:])
        away, wrong = flat - neutral, (guess - wanted) * weight
        value = -float((wanted * weight * np.log(np.maximum(guess, 1e-300))).sum())
        gradient = np.append((inputs.T @ wrong).ravel(), wrong.sum(axis=0)) + PENALTY * away
        return value + PENALTY / 2 * float(away @ away), gradient

    best = minimize(loss, neutral, jac=True, method="L-BFGS-B", options={"maxiter": 200}).x
    weights, bias = best[:-size].reshape(size, size), best[-size:]
    return Overlay(tenant, categories, weights, bias, gain, len(known.label), float(known.time[-1]))
