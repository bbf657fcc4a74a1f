"""Tests whether a candidate may replace the version in use: it must show a gain, and no guarded category a loss.

A router's rounds compare it on a held-out set (a randomization test on pairs), with other prompts and another candidate
each time. They spend their error probability by alpha spending: all rounds together promote a candidate without a gain
with probability SIGNIFICANCE at most. A plan's moves have evidence that no look spends (`coe.learning.moves`); here are
the contrasts that guard its categories and that its report shows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from coe.learning.off_policy import BanditLog, policy_difference

Array = NDArray[np.float64]
Reason = Literal[
    "better",
    "explored",
    "not better",
    "worse elsewhere",
    "guarded category falls",
    "nothing to judge by",
    "thin support",
    "breaks the budget",
]

HELD_OUT, LOGGED = "held-out set", "logged traffic"
"""Names of the sources of evidence."""
SIGNIFICANCE = 0.05
"""Error probability of a series of rounds, and the level of the tests for a loss."""
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
    """The decision about a candidate: its reason, and a sentence for the report. `round_` counts the tests since the
    last promotion, 0 where they do not count."""

    reason: Reason
    sentence: str
    evidence: tuple[Evidence, ...] = ()
    round_: int = 0

    @property
    def promote(self) -> bool:
        return self.reason in ("better", "explored")

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

    A candidate seems better than it is on the requests that chose its moves, so it can show a loss but no gain.
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
    """Promote where a source shows a gain and no guarded category falls; `round_` counts the tests since the last
    promotion."""
    level, found = significance_level(round_) / max(len(evidence), 1), tuple(evidence)
    if not found:
        return Judgement("nothing to judge by", "kept: there is no held-out set to judge by", found, round_)
    if fall := falling_categories(found):
        return Judgement("guarded category falls", f"kept: {fall}", found, round_)
    shown = "; ".join(f"{_summary(one)}, level {level:.2g}" for one in found)
    if not any(one.overall.above < level for one in found):
        return Judgement("not better", f"kept: not shown to be better ({shown})", found, round_)
    return Judgement("better", f"promoted: {shown}", found, round_)


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
