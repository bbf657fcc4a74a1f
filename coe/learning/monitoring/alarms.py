"""Alarms about experts: one takes all, one gets nothing, one has become worse, one does not answer."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray

from coe.learning.estimation.experience import Experience
from coe.learning.estimation.off_policy import greedy_policy
from coe.learning.monitoring.drift import holm
from coe.learning.monitoring.traffic import Traffic, Unanswered
from coe.learning.monitoring.traffic_report import AlarmKind
from coe.mapping import Assignment

MIN_REQUESTS = 200
"""Requests below which shares say nothing."""
COLLAPSE_SHARE = 0.9
"""Share of one expert that is an alarm where the plan gives it clearly less."""
MAX_PLANNED_SHARE = 0.8
"""Share by plan up to which it counts as clearly less."""
STARVED_FRACTION = 0.2
"""Part of its planned share below which an expert starves."""
MIN_RATED = 30
"""Ratings before and after that a comparison of an expert with itself takes."""
MIN_REWARD_DROP = 0.05
"""Fall of mean reward that is an alarm, once it is sure."""
SIGNIFICANCE = 0.01
"""Chance of a false alarm on degradation in one look, over all experts."""


MIN_UNANSWERED = 5
"""Requests of the last hour, not answered by the expert they were meant for, from which on that is an alarm."""
MIN_UNANSWERED_SHARE = 0.1
"""Part of the requests meant for an expert that must be unanswered for an alarm."""


@dataclass(frozen=True, slots=True)
class Alarm:
    """What is wrong with which expert; `value` is its share of the requests, the share of those meant for it that it
    did not answer, or the fall of its mean reward, 0 to 1."""

    kind: AlarmKind
    expert: str
    value: float
    sentence: str


def share_alarms(recent: Experience, assignment: Assignment) -> tuple[Alarm, ...]:
    """Experts whose share of the recent requests is far from what the assignment gives them on the same requests.

    The plan may well give everything to one expert: that is no alarm. An expert that fails, or is pinned by its
    clients, is one.
    """
    if len(recent) < MIN_REQUESTS:
        return ()
    served = np.bincount(recent.chosen, minlength=len(recent.experts)) / len(recent)
    planned = greedy_policy(recent, assignment).mean(axis=0)
    found = []
    for name, share, wanted in zip(recent.experts, served.tolist(), planned.tolist(), strict=True):
        said = f"{name} answered {share:.0%} of the last {len(recent)} requests where the plan gives it {wanted:.0%}"
        if share >= COLLAPSE_SHARE and wanted <= MAX_PLANNED_SHARE:
            found.append(Alarm("collapse", name, share, f"{said}: the others are not reached"))
        if wanted * len(recent) >= MIN_RATED and share < STARVED_FRACTION * wanted:
            found.append(Alarm("starvation", name, share, f"{said}: it is not reached, or fails"))
    return tuple(found)


def failing_alarms(traffic: Traffic, experts: Collection[str]) -> tuple[Alarm, ...]:
    """Return the `experts` that did not answer many of the last hour's requests for which they were the first choice:
    others answered in their place, or nobody did."""
    found = []
    for name in experts:
        seen = traffic.unanswered.get(name, Unanswered())
        count = seen.causes.total()
        if count < MIN_UNANSWERED or count < MIN_UNANSWERED_SHARE * seen.requests:
            continue
        causes = ", ".join(f"{cause} {number}" for cause, number in seen.causes.most_common())
        latest = datetime.fromtimestamp(seen.latest, UTC).strftime("%H:%M UTC")
        counts = f"{count} of {seen.requests} requests of the last hour"
        sentence = f"{name} did not answer {counts} for which it was the first choice ({causes}; latest at {latest})"
        found.append(Alarm("failing", name, count / seen.requests, sentence))
    return tuple(found)


def degradation_alarms(before: Experience, recent: Experience, *, assignment: Assignment) -> tuple[Alarm, ...]:
    """Experts whose ratings have fallen, the mix of categories taken off by the assignment's expectation.

    Welch's test of the ratings less what the quality of the assignment expects, corrected for the number of experts.
    """
    from scipy.stats import ttest_ind

    (old, surprise), (new, later) = (_residuals(part, assignment) for part in (before, recent))
    pairs = [(name, surprise[old == i], later[new == i]) for i, name in enumerate(before.experts)]
    tested = [(name, a, b) for name, a, b in pairs if min(len(a), len(b)) >= MIN_RATED and np.ptp(np.append(a, b)) > 0]
    chances = [float(ttest_ind(b, a, equal_var=False, alternative="less").pvalue) for _, a, b in tested]
    found = []
    for (name, a, b), surely in zip(tested, holm(chances), strict=True):
        fall = float(a.mean() - b.mean())
        if surely < SIGNIFICANCE and fall >= MIN_REWARD_DROP:
            counts = f"{len(b)} ratings against {len(a)}, by luck {surely:.2g}"
            found.append(Alarm("degradation", name, fall, f"{name} is rated {fall:.2f} lower than before ({counts})"))
    return tuple(found)


def _residuals(experience: Experience, assignment: Assignment) -> tuple[NDArray[np.int16], NDArray[np.float64]]:
    """The expert of each rated request, and its reward less the expected one."""
    told = experience.part(experience.rated)
    quality = np.where(np.isfinite(assignment.quality), assignment.quality, 0.0)
    expects = (told.posterior.astype(np.float64) @ quality)[np.arange(len(told)), told.chosen]
    return told.chosen, told.reward - expects
