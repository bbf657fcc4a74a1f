"""The learning round of overlays: fits a correction of the router's posterior for each tenant, kept while it helps.

An overlay is a multinomial logistic regression on the router's log posterior, shrunk towards the identity. Corrected
requests train it to change the router's category; liked or unrated requests train it to keep the category. A
randomization test on the newest requests decides about a new overlay. A test on the requests since then decides about
keeping it. All overlays of a router are one artifact, which holds those that help. `coe retrain` runs this round.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from coe.artifacts.kinds import OVERLAYS
from coe.core import Router
from coe.errors import DataError
from coe.jobs.rounds.round import Candidate, Job, ManifestFields, RoundState
from coe.learning.estimation.experience import NONE, Experience
from coe.learning.estimation.experience_loader import UNTENANTED, request_hash
from coe.learning.retraining.promotion import Contrast, held_out_evidence
from coe.records.record import RoutingRecord, observed
from coe.routing.classification import OVERLAYS_FILE, Overlay, log_posterior, softmax

Array = NDArray[np.float64]
Verdict = Literal["new", "refitted", "kept", "dropped", "not better"]

MIN_REQUESTS = 60
MIN_CORRECTED = 10
"""Requests, and corrections among them, that a tenant's overlay needs."""
MAX_REQUESTS = 5_000
"""Newest requests of a tenant that an overlay is fitted to."""
HELD_OUT_SHARE = 0.3
"""Newest share of the requests, which judges the overlay and does not train it."""
PENALTY = 0.02
"""L2 penalty on the distance from the identity, added to the mean loss of a request."""
MIN_LIKED_REWARD = 0.75
"""Reward from which the category of an uncorrected request counts as right."""
UNRATED_WEIGHT = 0.2
"""Weight of a request without feedback; a corrected or liked one has 1. Few users correct mistakes, but with weight 0 a
handful of corrections would move a whole category."""
SIGNIFICANCE = 0.01
"""Error probability in one round: that any tenant gets an overlay that does not help, and that one that helps is
dropped."""
REFIT_GROWTH = 2
"""Growth of a tenant's requests after which its overlay is refitted."""
MAX_POSTERIORS = 500_000
"""Newest requests whose router posteriors are held in memory, some 300 bytes each."""


@dataclass(frozen=True, slots=True)
class OverlayResult:
    """The result for one tenant.

    `overlay` is the one to use, None for none. `contrast` compares it with the router alone on requests that it was not
    fitted to; None where there are none.
    """

    tenant: str
    verdict: Verdict
    requests: int
    corrected: int
    contrast: Contrast | None
    overlay: Overlay | None

    @property
    def sentence(self) -> str:
        """The outcome in one sentence, for a report."""
        judged = "nothing is new"
        if self.contrast is not None:
            judged = (
                f"{self.contrast.value:+.3f} ± {self.contrast.error:.3f} right on {self.contrast.requests} requests"
            )
        return f"{self.tenant}: {self.verdict} ({judged}; {self.corrected} of {self.requests} corrected)"

    def to_json(self) -> dict[str, Any]:
        """The fields of a report."""
        fields = ("tenant", "verdict", "requests", "corrected", "sentence")
        contrast = None if self.contrast is None else asdict(self.contrast)
        return {name: getattr(self, name) for name in fields} | {"contrast": contrast}


class RouterPosteriors:
    """Collects the router's own posteriors from records, where an overlay changed them."""

    def __init__(self, categories: Sequence[str]) -> None:
        self._categories = tuple(categories)
        self._found: dict[int, NDArray[np.float32]] = {}

    def add(self, record: RoutingRecord) -> None:
        """Keep the router's posterior of a request."""
        if record.router_probabilities is not None:
            if len(self._found) >= MAX_POSTERIORS:
                del self._found[next(iter(self._found))]
            row = [record.router_probabilities.get(name, 0.0) for name in self._categories]
            self._found[request_hash(record.request_id)] = np.array(row, dtype=np.float32)

    def of(self, experience: Experience) -> NDArray[np.float32]:
        """The router's own posterior of each request, shape (n, m)."""
        posterior = experience.posterior.copy()
        for row, name in enumerate(experience.identity.tolist()):
            if name in self._found:
                posterior[row] = self._found[name]
        return posterior


def eligible_tenants(experience: Experience) -> frozenset[str]:
    """The tenants with enough requests and corrections for an overlay; requests without a key belong to no tenant."""
    count = len(experience.tenants)
    requests = np.bincount(experience.tenant, minlength=count)
    corrected = np.bincount(experience.tenant[experience.corrected != NONE], minlength=count)
    enough = (requests >= MIN_REQUESTS) & (corrected >= MIN_CORRECTED)
    return frozenset(np.array(experience.tenants, dtype=object)[enough]) - {UNTENANTED}


def judge_overlays(
    experience: Experience,
    router_posterior: NDArray[np.floating] | None = None,
    *,
    in_use: Mapping[str, Overlay] = MappingProxyType({}),
) -> tuple[OverlayResult, ...]:
    """Judge the overlay of every tenant that has one or is eligible, by its own requests alone.

    `router_posterior` (n, m) is the router's own; the experience's posterior is the served one. A new overlay is
    accepted if it is right significantly more often than the router on the newest requests, which it was not fitted to
    (Bonferroni over tenants); then it is fitted to all of them. It is kept until it is significantly worse on the
    requests since then; then it must pass the test again.
    """
    router = experience.posterior if router_posterior is None else router_posterior
    labelled = _LabelledRequests.of(experience, router)
    eligible = eligible_tenants(experience)
    results: list[OverlayResult] = []
    for number, rows in experience.by_tenant(labelled.weight > 0):
        tenant = experience.tenants[number]
        overlay = in_use.get(tenant)
        if overlay is not None or tenant in eligible:
            part = labelled.part(rows[np.argsort(experience.time[rows], kind="stable")][-MAX_REQUESTS:])
            results.append(
                _judge_tenant(tenant, experience.categories, part, overlay, level=SIGNIFICANCE / max(len(eligible), 1))
            )
    without_requests = in_use.keys() - {one.tenant for one in results}
    results += [OverlayResult(tenant, "kept", 0, 0, None, in_use[tenant]) for tenant in without_requests]
    return tuple(sorted(results, key=lambda one: one.tenant))


@dataclass(frozen=True, slots=True, eq=False)
class _LabelledRequests:
    """Requests with a known or presumed category, oldest first.

    `posterior` (n, m) is the router's own, `label` (n,) the category, `weight` (n,) its certainty; `is_corrected` (n,)
    marks labels from user corrections, and `time` (n,) is in Unix seconds.
    """

    posterior: Array
    label: NDArray[np.int64]
    weight: Array
    is_corrected: NDArray[np.bool_]
    time: Array

    @classmethod
    def of(cls, experience: Experience, router: NDArray[np.floating]) -> _LabelledRequests:
        is_corrected = experience.corrected != NONE
        liked = experience.rated & (experience.reward >= MIN_LIKED_REWARD)
        weight = np.where(is_corrected | liked, 1.0, np.where(experience.kind == NONE, UNRATED_WEIGHT, 0.0))
        label = np.where(is_corrected, experience.corrected, experience.posterior.argmax(axis=1)).astype(np.int64)
        return cls(router.astype(np.float64), label, weight, is_corrected, experience.time)

    def part(self, rows: NDArray[np.int64] | NDArray[np.bool_] | slice) -> _LabelledRequests:
        return _LabelledRequests(
            self.posterior[rows], self.label[rows], self.weight[rows], self.is_corrected[rows], self.time[rows]
        )

    @property
    def corrected(self) -> int:
        return int(self.is_corrected.sum())

    def contrast(self, head: Overlay) -> Contrast:
        """The difference of accuracy between the overlay and the router alone."""
        old, new = (
            (guess.argmax(axis=1) == self.label) * self.weight for guess in (self.posterior, head.apply(self.posterior))
        )
        return held_out_evidence(old, new, [""] * len(self.label)).overall


def _judge_tenant(
    tenant: str, categories: tuple[str, ...], requests: _LabelledRequests, overlay: Overlay | None, *, level: float
) -> OverlayResult:
    count, harms, since = len(requests.label), False, None

    def result(verdict: Verdict, contrast: Contrast | None, head: Overlay | None) -> OverlayResult:
        return OverlayResult(tenant, verdict, count, requests.corrected, contrast, head)

    if overlay is not None:
        newer = requests.part(requests.time > overlay.fitted_until)
        since = newer.contrast(overlay) if len(newer.label) else None
        harms = since is not None and since.below < SIGNIFICANCE
        grown = overlay.requests < MAX_REQUESTS and count >= min(REFIT_GROWTH * overlay.requests, MAX_REQUESTS)
        if not harms and not grown:
            return result("kept", since, overlay)
    contrast, head = _test_new_overlay(tenant, categories, requests, level=level)
    if head is not None:
        return result("new" if overlay is None else "refitted", contrast, head)
    if overlay is None:
        return result("not better", contrast, None)
    return result("dropped", since, None) if harms else result("kept", since, overlay)


def _test_new_overlay(
    tenant: str, categories: tuple[str, ...], requests: _LabelledRequests, *, level: float
) -> tuple[Contrast | None, Overlay | None]:
    """The contrast on the newest requests of an overlay fitted to the older ones, and, if it passes, one fitted to
    all."""
    count = len(requests.label)
    if count < MIN_REQUESTS or requests.corrected < MIN_CORRECTED:
        return None, None
    early = count - round(HELD_OUT_SHARE * count)
    head = _fit_overlay(tenant, categories, requests.part(slice(early)), gain=0.0)
    contrast = requests.part(slice(early, None)).contrast(head)
    if contrast.above >= level:
        return contrast, None
    return contrast, _fit_overlay(tenant, categories, requests, gain=contrast.value)


def _fit_overlay(tenant: str, categories: tuple[str, ...], requests: _LabelledRequests, *, gain: float) -> Overlay:
    """Multinomial logistic regression from log posteriors to categories, shrunk towards the identity.

    Uncorrected requests pull towards the router's own posterior.
    """
    from scipy.optimize import minimize

    inputs, size = log_posterior(requests.posterior), requests.posterior.shape[1]
    agreed = requests.posterior.argmax(axis=1) == requests.label
    targets = np.where((~requests.is_corrected & agreed)[:, None], requests.posterior, np.eye(size)[requests.label])
    weight = (requests.weight / requests.weight.sum())[:, None]
    identity = np.append(np.eye(size).ravel(), np.zeros(size))

    def loss(flat: Array) -> tuple[float, Array]:
        guess = softmax(inputs @ flat[:-size].reshape(size, size) + flat[-size:])
        away, wrong = flat - identity, (guess - targets) * weight
        value = -float((targets * weight * np.log(np.maximum(guess, 1e-300))).sum())
        gradient = np.append((inputs.T @ wrong).ravel(), wrong.sum(axis=0)) + PENALTY * away
        return value + PENALTY / 2 * float(away @ away), gradient

    best = minimize(loss, identity, jac=True, method="L-BFGS-B", options={"maxiter": 200}).x
    weights, bias = best[:-size].reshape(size, size), best[-size:]
    return Overlay(tenant, categories, weights, bias, gain, len(requests.label), float(requests.time[-1]))


@dataclass(frozen=True, slots=True)
class OverlayRound:
    """Needs a tenant that has an overlay, or has corrected enough requests of `experience` for one."""

    experience: Experience
    kind: str = OVERLAYS

    def judge(self, job: Job) -> Candidate | str | None:
        version = job.store(OVERLAYS).in_use()
        in_use = job.in_use.overlays.by_tenant
        tenants = eligible_tenants(self.experience).union(in_use)
        if not tenants:
            return None
        router = job.in_use.router
        posteriors = RouterPosteriors(router.categories)
        pages = (  # posteriors of another router do not compare
            tuple(r for r in page if r.tenant in tenants and r.is_by(router.version, categories=router.categories))
            for page in job.records()
        )
        try:
            own = job.experience(observed(pages, posteriors.add), limit=MAX_POSTERIORS).experience
        except DataError:  # the router is new, or has had requests of other tenants only
            return None
        return _candidate(judge_overlays(own, posteriors.of(own), in_use=in_use), job, version=version)


def _candidate(results: Sequence[OverlayResult], job: Job, *, version: str | None) -> Candidate:
    overlays = [one.overlay for one in results if one.overlay is not None]
    changed = any(one.verdict in ("new", "refitted", "dropped") for one in results)
    sentence = "; ".join(one.sentence for one in results if one.verdict != "kept") or "kept as they are"
    report = {"promoted": changed, "sentence": sentence, "tenants": [one.to_json() for one in results]}
    return Candidate(
        RoundState(version or "", 0, "", "", job.now, changed, sentence, ""),
        replaces=version,
        report=report,
        page="# Overlays\n\n" + "".join(f"- {one.sentence}\n" for one in results),
        save=partial(_save, overlays, router=job.in_use.router) if overlays else None,
    )


def _save(overlays: Sequence[Overlay], folder: Path, *, router: Router) -> ManifestFields:
    (folder / OVERLAYS_FILE).write_bytes(b"".join(overlay.to_json() + b"\n" for overlay in overlays))
    return {"categories": router.categories, "data": router.version, "metrics": {"tenants": len(overlays)}}
