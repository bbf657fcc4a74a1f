"""Raises alarms about experts: one takes almost all traffic, one gets almost none, one got worse, one does not
answer."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray

from coe.artifacts.redis import AlarmKind
from coe.learning.experience import Experience
from coe.learning.off_policy import greedy_policy
from coe.planning.assignment import Assignment
from coe.reports.drift import holm
from coe.reports.traffic import Traffic, Unanswered

MIN_REQUESTS = 200
"""Requests that the share alarms need."""
COLLAPSE_SHARE = 0.9
"""Share of one expert that is an alarm where the plan gives it at most MAX_PLANNED_SHARE."""
MAX_PLANNED_SHARE = 0.8
STARVED_FRACTION = 0.2
"""Fraction of its planned share below which an expert starves."""
MIN_RATED = 30
"""Ratings before and after that a comparison of an expert with itself needs."""
MIN_REWARD_DROP = 0.05
"""Smallest drop of the mean reward that is an alarm if it is significant."""
SIGNIFICANCE = 0.01
"""Probability of a false degradation alarm in one report, over all experts."""
MIN_UNANSWERED = 5
"""Unanswered requests of the last hour that an alarm needs."""
MIN_UNANSWERED_SHARE = 0.1
"""Smallest unanswered share of an expert's first-choice requests that is an alarm."""


@dataclass(frozen=True, slots=True)
class Alarm:
    """An alarm about an expert.

    `value` depends on the kind, 0 to 1: the share of the requests, the unanswered share of the first-choice requests,
    or the drop of the mean reward.
    """

    kind: AlarmKind
    expert: str
    value: float
    sentence: str


def share_alarms(recent: Experience, assignment: Assignment) -> tuple[Alarm, ...]:
    """Experts whose share of the recent requests is far from what the assignment gives them on the same requests.

    If the plan itself gives everything to one expert, that is not an alarm. An expert that fails, or that clients pin,
    is one.
    """
    if len(recent) < MIN_REQUESTS:
        return ()
    served = np.bincount(recent.chosen, minlength=len(recent.experts)) / len(recent)
    planned = greedy_policy(recent, assignment).mean(axis=0)
    found = []
    for name, share, planned_share in zip(recent.experts, served.tolist(), planned.tolist(), strict=True):
        served_share = f"{name} answered {share:.0%} of the last {len(recent)} requests"
        shares = f"{served_share} where the plan gives it {planned_share:.0%}"
        if share >= COLLAPSE_SHARE and planned_share <= MAX_PLANNED_SHARE:
            found.append(Alarm("collapse", name, share, f"{shares}: the others are not reached"))
        if planned_share * len(recent) >= MIN_RATED and share < STARVED_FRACTION * planned_share:
            found.append(Alarm("starvation", name, share, f"{shares}: it is not reached, or fails"))
    return tuple(found)


def failing_alarms(traffic: Traffic, experts: Collection[str]) -> tuple[Alarm, ...]:
    """The `experts` that left many of the last hour's first-choice requests unanswered, whether another answered or
    none."""
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
    """Experts whose ratings dropped, corrected for the mix of categories by the assignment's expected quality.

    Welch's test of the ratings less the expected quality, adjusted for the number of experts.
    """
    from scipy.stats import ttest_ind

    (old, old_residual), (new, new_residual) = (_residuals(part, assignment) for part in (before, recent))
    pairs = [(name, old_residual[old == i], new_residual[new == i]) for i, name in enumerate(before.experts)]
    tested = [(name, a, b) for name, a, b in pairs if min(len(a), len(b)) >= MIN_RATED and np.ptp(np.append(a, b)) > 0]
    chances = [float(ttest_ind(b, a, equal_var=False, alternative="less").pvalue) for _, a, b in tested]
    found = []
    for (name, a, b), chance in zip(tested, holm(chances), strict=True):
        fall = float(a.mean() - b.mean())
        if chance < SIGNIFICANCE and fall >= MIN_REWARD_DROP:
            counts = f"{len(b)} ratings against {len(a)}, p = {chance:.2g}"
            found.append(Alarm("degradation", name, fall, f"{name} is rated {fall:.2f} lower than before ({counts})"))
    return tuple(found)


def _residuals(experience: Experience, assignment: Assignment) -> tuple[NDArray[np.int16], NDArray[np.float64]]:
    """The expert of each rated request, and its reward less the expected one."""
    rated = experience.part(experience.rated)
    quality = np.where(np.isfinite(assignment.quality), assignment.quality, 0.0)
    expects = (rated.posterior.astype(np.float64) @ quality)[np.arange(len(rated)), rated.chosen]
    return rated.chosen, rated.reward - expects
