"""Builds the reports of `coe status` and `coe report`.

The first says if the gateway is up, what is in use and what is wrong, and reads no log. The second reads the routing
log of some days once: traffic, spend, drift, alarms, and what the plan in use is worth. `coe retrain` builds it too,
for the gateways' metrics.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson

from coe.artifacts.artifact_sync import sync_once
from coe.artifacts.manifest import ARTIFACT_KINDS, ASSIGNMENT, ROUTER, noting
from coe.artifacts.redis import TRAFFIC_REPORT_FILE, read_traffic_report
from coe.artifacts.store import ArtifactStore
from coe.errors import ArtifactError, DataError
from coe.fleet.gateway_state import gateway_state
from coe.fleet.residency.client import shared_devices
from coe.learning.experience import Experience, load_experience
from coe.learning.log_frame import frame_of, open_logs
from coe.learning.refit import demoted_categories
from coe.learning.round import read_round_states
from coe.planning.assignment import Assignment
from coe.planning.plan import Plan
from coe.records.record import RoutingRecord
from coe.registry import load
from coe.reports.alarms import Alarm, degradation_alarms, failing_alarms, share_alarms
from coe.reports.degradation import Baseline, degradations
from coe.reports.spend import Spend
from coe.reports.traffic import Traffic, traffic_sample
from coe.reports.value import value_of
from coe.settings import Settings
from coe.trials.drift import detect_drift

if TYPE_CHECKING:
    from coe.artifacts.active_state import ActiveState

HOUR_SECONDS, DAY_SECONDS = 3_600.0, 86_400.0
MAX_ALARM_REQUESTS = 100_000
"""Newest requests that alarms are computed from."""
_ROUND_FIELDS = ("time", "promoted", "sentence", "report", "judged")
MIN_COMPARED = 200
"""Requests of each side that a drift test needs."""


def status_report(settings: Settings) -> dict[str, Any]:
    """The report of `coe status`, JSON-able; times are in Unix seconds.

    `damaged` has the problem of each damaged artifact in use, and `alarms` the experts by kind of alarm, and the
    shifted aspects of the traffic, as the last traffic report found them (None without one). `measured_at` is the time
    of each expert's oldest score in the plan, and `demoted` has the categories of each expert that got worse. Raises
    ConfigError.
    """
    from coe.artifacts.versions import consequences_of

    sync_once(settings)
    damaged = dict[str, str]()
    registry = load(settings.config, environ=settings.environ)
    used = {kind: _in_use(settings, kind, damaged) for kind in ARTIFACT_KINDS}
    known = ROUTER not in damaged
    found, plan = read_traffic_report(settings.artifacts / TRAFFIC_REPORT_FILE), _plan(settings)
    return {
        "gateway": gateway_state(settings),
        "in_use": {"config": registry.digest, **used},
        "damaged": damaged,
        "consequences": [asdict(one) for one in consequences_of(settings, registry, damaged=damaged)] if known else [],
        "alarms": None if found is None else asdict(found),
        "measured_at": {} if plan is None else plan.measured_at,
        "demoted": {} if plan is None else demoted_categories(plan.demoted),
        "residency": asyncio.run(shared_devices(settings.home)),
    }


def report(
    settings: Settings, *, now: float, seconds: float = 7 * DAY_SECONDS, against: str | None = None
) -> dict[str, Any]:
    """The report of `coe report` on the last `seconds`, JSON-able; times in Unix seconds, shares and rates from 0 to 1.

    Without the plan in use, nothing is compared with its shares. Raises ArtifactError for a damaged router, ConfigError
    for an invalid declaration.
    """
    from coe.artifacts.active_state import load_active_state

    sync_once(settings)
    damaged = dict[str, str]()
    in_use = load_active_state(settings, damaged=damaged)
    traffic = Traffic(in_use.router.categories, in_use.router.version, day=now - DAY_SECONDS, hour=now - HOUR_SECONDS)
    spend, planned = Spend(in_use.registry), None if ASSIGNMENT in damaged else in_use.assignment
    alarms, found = _read(settings, in_use, planned, traffic, spend, since=now - seconds, now=now)
    promoted = _in_use(settings, ROUTER, damaged)["since"]
    spent = spend.report()
    return {
        "days": seconds / DAY_SECONDS,
        "value": value_of(spent, found, in_use.registry, against=against),
        "traffic": traffic.summary(),
        "spend": spent,
        "drift": _drift(traffic, test=int((now - (promoted or now)) // DAY_SECONDS) + 1),
        "alarms": [asdict(alarm) for alarm in alarms],
        "learning": {
            kind: {name: getattr(state, name) for name in _ROUND_FIELDS}
            for kind, state in read_round_states(settings.artifacts).items()
        },
    }


def page(report: Mapping[str, Any]) -> str:
    """Return a report as one HTML file that needs no network (`report.html`); no text in it can end the script."""
    data = orjson.dumps(report).decode().replace("<", "\\u003c")
    return Path(__file__).with_name("report.html").read_text(encoding="utf-8").replace("__REPORT__", data)


def ages(measured_at: Mapping[str, float], demoted: Mapping[str, Sequence[str]]) -> str:
    """Return the ages of the scores of a plan as text, the oldest first, and which do not count since the expert is
    demoted."""
    oldest = sorted((when, name) for name, when in measured_at.items())
    days = ((name, f"{(time.time() - when) / DAY_SECONDS:.0f}") for when, name in oldest)
    text = "age of the scores in days: " + (", ".join(f"{name} {age}" for name, age in days) or "unknown")
    until = (f"; ratings count in {', '.join(found)} until coe score --again {name}" for name, found in demoted.items())
    return text + "".join(until)


def _in_use(settings: Settings, kind: str, damaged: dict[str, str]) -> dict[str, Any]:
    """The version in use, None for what experts.yaml declares, and its last promotion where the history has one.
    Damage is put into `damaged`."""
    store, version, move = ArtifactStore(settings.artifacts, kind), None, None
    with noting(damaged, kind):
        version = store.in_use()
        store.current()
    with noting(damaged, f"{kind} history"):
        move = store.last_move()
    return {"version": version, "since": move.time if move else None, "by": move.by if move else None}


def _plan(settings: Settings) -> Plan | None:
    """Return the plan in use; None without one that was made from scores, or if it is damaged (`coe status` names
    it)."""
    store = ArtifactStore(settings.artifacts, ASSIGNMENT)
    with suppress(ArtifactError):
        if (version := store.in_use()) is not None:
            return Plan.read(store.published(version).folder)
    return None


def _baseline(plan: Plan | None, assignment: Assignment) -> Baseline:
    """Return what the plan knows of each cell of the assignment in effect."""
    names = assignment.categories, assignment.experts
    measured = None if plan is None or plan.measured is None else plan.measured.over(*names)
    count = np.zeros(assignment.quality.shape) if measured is None else measured.count
    return Baseline(assignment.quality, count, {} if plan is None else plan.measured_at)


def _read(
    settings: Settings,
    in_use: ActiveState,
    planned: Assignment | None,
    traffic: Traffic,
    spend: Spend,
    *,
    since: float,
    now: float,
) -> tuple[tuple[Alarm, ...], Experience | None]:
    """Read the log once, for the alarms, the experience, `traffic` and `spend`, which also counts requests of CoE's
    commands. `planned` is None if the plan that the gateways serve is unknown."""
    experts = in_use.assignment.experts

    def counted(pages: Iterable[Sequence[RoutingRecord]]) -> Iterator[Sequence[RoutingRecord]]:
        for page in pages:
            for record in page:
                (traffic.add_own if record.purpose else traffic.add)(record)
                spend.add(record)
            yield page

    with open_logs(in_use.registry.log.url, base=settings.home) as logs:
        records = logs.records(since=since, until=now)
        try:
            frame = frame_of(counted(records), logs.feedback(since=since), limit=MAX_ALARM_REQUESTS)
            found = load_experience(frame, categories=traffic.categories, experts=experts).experience
        except DataError:  # no request to learn from; if all failed, that is an alarm
            return failing_alarms(traffic, experts), None
    if planned is None:
        return failing_alarms(traffic, experts), found
    plan = _plan(settings)
    worse, demoted = degradations(found, _baseline(plan, planned)), {} if plan is None else plan.demoted
    alarms = (
        *failing_alarms(traffic, experts),
        *share_alarms(found.part(found.time >= now - DAY_SECONDS), planned),
        *degradation_alarms(worse, demoted, planned, scores=_scores_folder(settings)),
    )
    return alarms, found


def _scores_folder(settings: Settings) -> str:
    """Return the folder that the last plan was made from, as its promotion names it."""
    moves, planned_on = ArtifactStore(settings.artifacts, ASSIGNMENT).history(), "planned on "
    folders = (move.why.removeprefix(planned_on) for move in reversed(moves) if move.why.startswith(planned_on))
    return next(folders, "SCORES")


def _drift(traffic: Traffic, *, test: int) -> dict[str, Any]:
    """The last day compared with the first traffic that the router served.

    All reports of a day are one test, so that frequent reports neither raise false alarms nor weaken the tests.
    """
    sides = {"before": traffic_sample(traffic.first), "now": traffic_sample(list(traffic.latest))}
    sizes = {side: len(sample.category) for side, sample in sides.items()}
    both: dict[str, Any] | None = None
    if all(sizes.values()):
        mixes, bins = zip(*(sample.shares(traffic.categories) for sample in sides.values()), strict=True)
        both = {"requests": sizes, "categories": dict(zip(sides, mixes, strict=True))}
        both["confidence"] = dict(zip(sides, bins, strict=True))
    if min(sizes.values()) < MIN_COMPARED:
        counts = f"{sizes['before']} earlier requests of this router and {sizes['now']} of the day"
        reference = f"too little to compare: {counts}, {MIN_COMPARED} of each are needed"
        return {"reference": reference, "findings": [], "compared": both}
    found = detect_drift(sides["before"], sides["now"], categories=traffic.categories, test=test)
    reference = f"the first {sizes['before']} requests of this router in the log's period"
    return {"reference": reference, "findings": [asdict(one) for one in found], "compared": both}
