"""Raises alarms about experts: one takes almost all traffic, one gets almost none, one got worse, one does not
answer."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np

from coe.artifacts.redis import AlarmKind
from coe.learning.experience import Experience
from coe.learning.off_policy import greedy_policy
from coe.planning.assignment import Assignment
from coe.planning.plan import Demoted, Drop
from coe.reports.degradation import Degradation
from coe.reports.traffic import Traffic, Unanswered

MIN_REQUESTS = 200
"""Requests that the share alarms need."""
COLLAPSE_SHARE = 0.9
"""Share of one expert that is an alarm where the plan gives it at most MAX_PLANNED_SHARE."""
MAX_PLANNED_SHARE = 0.8
STARVED_FRACTION = 0.2
"""Fraction of its planned share below which an expert starves."""
MIN_RATED = 30
"""Requests that the plan gives an expert, from which on it can starve."""
MIN_UNANSWERED = 5
"""Unanswered requests of the last hour that an alarm needs."""
MIN_UNANSWERED_SHARE = 0.1
"""Smallest unanswered share of an expert's first-choice requests that is an alarm."""


@dataclass(frozen=True, slots=True)
class Alarm:
    """An alarm about an expert.

    `value` depends on the kind, 0 to 1: the share of the requests, the unanswered share of the first-choice requests,
    or the largest drop of the mean rating. Of an expert that got worse, `drops` has the categories, and `command` is
    the next step.
    """

    kind: AlarmKind
    expert: str
    value: float
    sentence: str
    drops: tuple[Drop, ...] = ()
    command: str = ""


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


def degradation_alarms(
    found: Sequence[Degradation], demoted: Demoted, assignment: Assignment, *, scores: str
) -> tuple[Alarm, ...]:
    """The alarms about experts that got worse, and about those that are `demoted` for it, whose ratings do not tell any
    more. `scores` is the folder that the plan was made from."""
    alarms = []
    choice = dict(zip(assignment.categories, assignment.choice, strict=True))
    seconds = dict(zip(assignment.categories, (name for name, _ in assignment.runners_up), strict=True))
    by_expert = {one.expert: one for one in found}
    for name in {**by_expert, **demoted}:
        since, chance, drops = "", "", list(demoted.get(name, ()))
        if (worse := by_expert.get(name)) is not None:
            since = f" since about {datetime.fromtimestamp(worse.since, UTC):%Y-%m-%d}"
            chance = f"; p < {worse.chance:.1g}"
            drops = [*worse.drops, *(one for one in drops if one.category not in {new.category for new in worse.drops})]
        parts = []
        for drop in drops:
            expert, second = choice.get(drop.category), seconds.get(drop.category)
            instead = f"; {expert} answers it now" if expert != name else f"; next best is {second}" if second else ""
            parts.append(f"{drop.category} {drop.expected:.2f} to {drop.found:.2f} ({drop.ratings} ratings{instead})")
        command = f"coe score --again {name} --out {scores}, then coe plan {scores}"
        sentence = f"{name} got worse{since}: {', '.join(parts)}{chance}. To measure it: {command}"
        largest = max(drop.expected - drop.found for drop in drops)
        alarms.append(Alarm("degradation", name, largest, sentence, tuple(drops), command))
    return tuple(alarms)
