"""Promotion: a candidate takes over only where a test shows it better, and nothing shows it worse."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from coe.learning.estimation.off_policy import LoggedBandit, policy_difference

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
"""Chance that a whole series of candidates no better than the current one ever brings a promotion."""
FIRST_SOURCE_SHARE = 0.8
"""What the first of two sources may spend of a round's chance."""
RANDOMIZATIONS = 20_000
MIN_GUARDED_REQUESTS = 20
"""Requests of a guarded category below which nothing is said of it."""


@dataclass(frozen=True, slots=True)
class Contrast:
    """Candidate less current in one source: the mean difference, its standard error, and the chances of as much by
    luck if both were equal: `above` that it is as large as this, `below` that it is as small."""

    value: float
    error: float
    above: float
    below: float
    requests: int


@dataclass(frozen=True, slots=True)
class Evidence:
    """One source's contrast over everything, and over each category that is to be guarded."""

    source: str
    overall: Contrast
    guarded: Mapping[str, Contrast] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Judgement:
    """Whether to promote, why, and a sentence for the report."""

    promote: bool
    reason: Reason
    sentence: str
    round_: int
    evidence: tuple[Evidence, ...]


def significance_level(round_: int) -> float:
    """What the `round_`-th test (from 1) since the last promotion may spend of CHANCE: 1 / (r (r + 1)) of it, so that
    all of them together spend it once, however many follow."""
    return SIGNIFICANCE / (round_ * (round_ + 1))


def held_out_evidence(
    current: Array, candidate: Array, categories: Sequence[str], *, guarded: Sequence[str] = ()
) -> Evidence:
    """Evidence of a fixed set that both were scored on, pair by pair; all of length n."""
    names, gain = np.asarray(categories), np.asarray(candidate, dtype=np.float64) - current
    by_name = {name: gain[names == name] for name in guarded}
    falls = {name: paired_contrast(part) for name, part in by_name.items() if len(part) >= MIN_GUARDED_REQUESTS}
    return Evidence(HELD_OUT, paired_contrast(gain), falls)


def logged_evidence(
    log: LoggedBandit, current: Array, candidate: Array, categories: Sequence[str], *, guarded: Sequence[str] = ()
) -> Evidence:
    """Evidence of logged traffic, doubly robust: policies of shape (n, k), and the likeliest category of each request.

    The candidate's policy must not have been fitted to the requests it is judged on (`policies.cross_fitted`), and the
    requests must be later than those that the current one was fitted to.
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


def judge(evidence: Sequence[Evidence], *, round_: int, margin: float = 0.01) -> Judgement:
    """Promote where one source shows the candidate better, no other shows it worse, and no guarded category falls.

    Worse is by more than `margin` (0 to 1) and by more than luck explains (at CHANCE). `round_` counts the tests since
    the last promotion; the first of two sources gets FIRST of what a round may spend, so name a held-out set first.
    """
    chance = [
        share * significance_level(round_)
        for share in ((FIRST_SOURCE_SHARE, 1.0 - FIRST_SOURCE_SHARE) if len(evidence) > 1 else (1.0,))
    ]

    def verdict(reason: Reason, sentence: str) -> Judgement:
        return Judgement(reason == "better", reason, sentence, round_, tuple(evidence))

    if not evidence:
        return verdict("nothing to judge by", "kept: there is neither a held-out set nor rated traffic to judge by")
    if fall := falling_categories(evidence):
        return verdict("guarded category falls", f"kept: {fall}")
    said = "; ".join(f"{_summary(one)}, asked {spent:.2g}" for one, spent in zip(evidence, chance, strict=True))
    if not any(one.overall.above < spent for one, spent in zip(evidence, chance, strict=True)):
        return verdict("not better", f"kept: not shown to be better ({said})")
    if any(one.overall.value < -margin and one.overall.below < SIGNIFICANCE for one in evidence):
        return verdict("worse elsewhere", f"kept: better by one source and worse by another ({said})")
    return verdict("better", f"promoted: {said}")


def falling_categories(evidence: Sequence[Evidence]) -> str:
    """Names the guarded categories that fall significantly (Bonferroni over all of them); empty where none does."""
    tests = sum(len(one.guarded) for one in evidence)
    return "; ".join(
        f"guarded category {name} falls by {-contrast.value:.3f} on the {one.source}"
        for one in evidence
        for name, contrast in one.guarded.items()
        if contrast.below < SIGNIFICANCE / tests
    )


def _summary(one: Evidence) -> str:
    contrast = one.overall
    return f"{contrast.value:+.4f} ± {contrast.error:.4f} on the {one.source} (by luck {contrast.above:.2g})"


def paired_contrast(gain: Array) -> Contrast:
    """By random changes of sign (Fisher's randomisation test): exact for few pairs that differ, as McNemar's is."""
    count, moved = len(gain), gain[gain != 0]
    if not len(moved):
        return Contrast(0.0, 0.0, 1.0, 1.0, count)
    rng = np.random.default_rng(0)
    sums = np.concatenate(
        [(rng.integers(0, 2, (RANDOMIZATIONS // 100, len(moved))) * 2 - 1) @ moved for _ in range(100)]
    )
    total = float(moved.sum())
    above, below = (float((1 + (side >= -1e-12).sum()) / (1 + RANDOMIZATIONS)) for side in (sums - total, total - sums))
    bound = float(np.exp(-(total**2) / (2.0 * float((moved**2).sum()))))  # Hoeffding: below what FLIPS can resolve
    above, below = (min(above, bound), below) if total > 0 else (above, min(below, bound))
    return Contrast(total / count, float(gain.std(ddof=1)) / count**0.5, above, below, count)


def estimated_contrast(log: LoggedBandit, current: Array, candidate: Array) -> Contrast:
    from scipy.stats import t

    found = policy_difference(log, candidate, current)
    if found.error == 0.0:
        return Contrast(0.0, 0.0, 1.0, 1.0, len(log))
    above = float(t.sf(found.value / found.error, found.degrees))
    return Contrast(found.value, found.error, above, 1.0 - above, len(log))
