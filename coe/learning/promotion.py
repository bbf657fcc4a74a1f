"""Tests whether a candidate may replace the version in use: at least one evidence source must show a gain, and no
source a loss.

Evidence comes from a held-out set (a randomization test on pairs) or from logged traffic (a doubly robust off-policy
estimate). A series of rounds spends its error probability by alpha spending: all rounds together promote a candidate
without a gain with probability SIGNIFICANCE at most.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from coe.learning.off_policy import BanditLog, policy_difference

Array = NDArray[np.float64]
Reason = Literal[
    "better",
    "not better",
    "worse elsewhere",
    "guarded category falls",
    "nothing to judge by",
    "thin support",
    "too little is new",
    "breaks the budget",
]

HELD_OUT, LOGGED = "held-out set", "logged traffic"
"""Names of the sources of evidence."""
SIGNIFICANCE = 0.05
"""Error probability of a series of rounds, and the level of the tests for a loss."""
FIRST_SOURCE_SHARE = 0.8
"""The first of two sources' share of a round's significance level."""
MAX_LOSS_ELSEWHERE = 0.01
"""Loss of mean quality in one source above which a gain that another source shows is rejected."""
RANDOMIZATIONS = 20_000
"""Random changes of sign in a test of paired differences."""
MIN_GUARDED_REQUESTS = 20
"""Requests that the test of a guarded category needs."""


@dataclass(frozen=True, slots=True)
class Contrast:
    """The mean difference, candidate less current, in one source, with its standard error and two one-sided p-values.

    `above` is the probability of a difference at least this large if both were equal, `below` of one at most this
    large.
    """

    value: float
    error: float
    above: float
    below: float
    requests: int


@dataclass(frozen=True, slots=True)
class Evidence:
    """The contrast of one source: overall, and in each guarded category."""

    source: str
    overall: Contrast
    guarded: Mapping[str, Contrast] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Judgement:
    """The decision about a candidate: its reason, and a sentence for the report."""

    reason: Reason
    sentence: str
    round_: int
    evidence: tuple[Evidence, ...]

    @property
    def promote(self) -> bool:
        return self.reason == "better"

    def to_json(self) -> dict[str, Any]:
        """The fields that the report of every kind of round has."""
        fields = asdict(self)
        return {"promoted": self.promote, "round": fields.pop("round_"), **fields}


def significance_level(round_: int) -> float:
    """The level of the `round_`-th test (from 1) since the last promotion: SIGNIFICANCE / (r (r + 1)).

    The levels of all rounds add up to SIGNIFICANCE.
    """
    return SIGNIFICANCE / (round_ * (round_ + 1))


def held_out_evidence(
    current: Array, candidate: Array, categories: Sequence[str], *, guarded: Sequence[str] = ()
) -> Evidence:
    """Evidence from a fixed set that both were scored on; scores and categories have length n."""
    names, gain = np.asarray(categories), np.asarray(candidate, dtype=np.float64) - current
    by_name = {name: gain[names == name] for name in guarded}
    falls = {name: paired_contrast(part) for name, part in by_name.items() if len(part) >= MIN_GUARDED_REQUESTS}
    return Evidence(HELD_OUT, paired_contrast(gain), falls)


def logged_evidence(
    log: BanditLog, current: Array, candidate: Array, categories: Sequence[str], *, guarded: Sequence[str] = ()
) -> Evidence:
    """Evidence from logged traffic, doubly robust: policies of shape (n, k), and each request's likeliest category.

    The candidate's policy must be cross-fitted: an assignment judged on the requests it was fitted to seems better than
    it is. The requests must be later than those that the current one was fitted to.
    """
    names = np.asarray(categories)
    rows = {name: names == name for name in guarded}
    parts = {
        name: (log.part(r), current[r], candidate[r]) for name, r in rows.items() if r.sum() >= MIN_GUARDED_REQUESTS
    }
    return Evidence(
        LOGGED,
        estimated_contrast(log, current, candidate),
        {name: estimated_contrast(*part) for name, part in parts.items()},
    )


def judge(evidence: Sequence[Evidence], *, round_: int) -> Judgement:
    """Promote where one source shows a gain, no other shows a loss, and no guarded category falls.

    A loss counts if it is above MAX_LOSS_ELSEWHERE and significant. `round_` counts the tests since the last promotion.
    The first of two sources gets FIRST_SOURCE_SHARE of the round's level, so name a held-out set first.
    """
    parts = (FIRST_SOURCE_SHARE, 1.0 - FIRST_SOURCE_SHARE) if len(evidence) > 1 else (1.0,)
    levels = [part * significance_level(round_) for part in parts]
    verdict = partial(Judgement, round_=round_, evidence=tuple(evidence))
    if not evidence:
        return verdict("nothing to judge by", "kept: there is neither a held-out set nor rated traffic to judge by")
    if fall := falling_categories(evidence):
        return verdict("guarded category falls", f"kept: {fall}")
    shown = "; ".join(f"{_summary(one)}, level {level:.2g}" for one, level in zip(evidence, levels, strict=True))
    if not any(one.overall.above < level for one, level in zip(evidence, levels, strict=True)):
        return verdict("not better", f"kept: not shown to be better ({shown})")
    if any(one.overall.value < -MAX_LOSS_ELSEWHERE and one.overall.below < SIGNIFICANCE for one in evidence):
        return verdict("worse elsewhere", f"kept: better by one source and worse by another ({shown})")
    return verdict("better", f"promoted: {shown}")


def falling_categories(evidence: Sequence[Evidence]) -> str:
    """The guarded categories that fall significantly (Bonferroni over all of them), as text; empty where none does."""
    tests = sum(len(one.guarded) for one in evidence)
    return "; ".join(
        f"guarded category {name} falls by {-contrast.value:.3f} on the {one.source}"
        for one in evidence
        for name, contrast in one.guarded.items()
        if contrast.below < SIGNIFICANCE / tests
    )


def _summary(one: Evidence) -> str:
    contrast = one.overall
    return f"{contrast.value:+.4f} ± {contrast.error:.4f} on the {one.source} (p = {contrast.above:.2g})"


def paired_contrast(gain: Array) -> Contrast:
    """Fisher's randomization test of paired gains (n,): signs change at random.

    It is exact for few pairs that differ, like McNemar's test.
    """
    count, changed = len(gain), gain[gain != 0]
    if not len(changed):
        return Contrast(0.0, 0.0, 1.0, 1.0, count)
    rng = np.random.default_rng(0)
    sums = np.concatenate(
        [(rng.integers(0, 2, (RANDOMIZATIONS // 100, len(changed))) * 2 - 1) @ changed for _ in range(100)]
    )
    total = float(changed.sum())
    above, below = (float((1 + (side >= -1e-12).sum()) / (1 + RANDOMIZATIONS)) for side in (sums - total, total - sums))
    bound = float(np.exp(-(total**2) / (2.0 * float((changed**2).sum()))))  # Hoeffding: resolves smaller p-values
    above, below = (min(above, bound), below) if total > 0 else (above, min(below, bound))
    return Contrast(total / count, float(gain.std(ddof=1)) / count**0.5, above, below, count)


def estimated_contrast(log: BanditLog, current: Array, candidate: Array) -> Contrast:
    """The doubly robust difference of two policies (n, k), tested by its t-interval."""
    from scipy.stats import t

    found = policy_difference(log, candidate, current)
    if found.error == 0.0:
        return Contrast(0.0, 0.0, 1.0, 1.0, len(log))
    above = float(t.sf(found.value / found.error, found.degrees))
    return Contrast(found.value, found.error, above, 1.0 - above, len(log))
