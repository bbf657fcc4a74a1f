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
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException
from typing import TYPE_CHECKING, Any

import numpy as np

from coe.artifacts.artifact_sync import sync_once
from coe.artifacts.manifest import ARTIFACT_KINDS, ASSIGNMENT, ROUTER, noting
from coe.artifacts.redis import TRAFFIC_REPORT_FILE, read_traffic_report
from coe.artifacts.store import ArtifactStore
from coe.errors import ArtifactError, DataError
from coe.fleet.residency.client import fetch_report
from coe.learning.experience import load_experience
from coe.learning.log_frame import frame_of, open_logs
from coe.learning.refit import demoted_categories
from coe.learning.round import read_round_states
from coe.planning.assignment import Assignment
from coe.planning.plan import Plan
from coe.records.record import RoutingRecord
from coe.registry import load
from coe.reports.alarms import (
    Alarm,
    degradation_alarms,
    failing_alarms,
    share_alarms,
)
from coe.reports.degradation import Baseline, degradations
from coe.reports.drift import detect_drift
from coe.reports.spend import Spend
from coe.reports.traffic import Traffic, comparison, traffic_sample
from coe.settings import Settings

if TYPE_CHECKING:
    from coe.artifacts.active_state import ActiveState

HOUR_SECONDS, DAY_SECONDS = 3_600.0, 86_400.0
MAX_ALARM_REQUESTS = 100_000
"""Newest requests that alarms are computed from."""
_ROUND_FIELDS = ("time", "promoted", "sentence", "report", "judged")
MIN_COMPARED = 200
"""Requests of each side that a drift test needs."""
ANY_HOST = ("", "0.0.0.0", "::")  # noqa: S104  the addresses that stand for all of this machine's
GATEWAY_TIMEOUT_SECONDS = 2.0


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
        "gateway": _gateway(settings),
        "in_use": {"config": registry.digest, **used},
        "damaged": damaged,
        "consequences": [asdict(one) for one in consequences_of(settings, registry, damaged=damaged)] if known else [],
        "alarms": None if found is None else asdict(found),
        "measured_at": {} if plan is None else plan.measured_at,
        "demoted": {} if plan is None else demoted_categories(plan.demoted),
        "residency": _residency(settings),
    }


def report(settings: Settings, *, now: float, days: int = 7) -> dict[str, Any]:
    """The report of `coe report` on the last `days`, JSON-able; times in Unix seconds, shares and rates from 0 to 1.

    Without the plan in use, nothing is compared with its shares. Raises ArtifactError for a damaged router, ConfigError
    for an invalid declaration.
    """
    from coe.artifacts.active_state import load_active_state

    sync_once(settings)
    damaged = dict[str, str]()
    in_use = load_active_state(settings, damaged=damaged)
    traffic = Traffic(in_use.router.categories, in_use.router.version, day=now - DAY_SECONDS, hour=now - HOUR_SECONDS)
    spend, planned = Spend(in_use.registry), None if ASSIGNMENT in damaged else in_use.assignment
    alarms = _alarms(settings, in_use, planned, traffic, spend, since=now - days * DAY_SECONDS, now=now)
    promoted = _in_use(settings, ROUTER, damaged)["since"]
    return {
        "days": days,
        "traffic": traffic.summary(),
        "spend": spend.report(),
        "plan": _worth(settings),
        "drift": _drift(traffic, test=int((now - (promoted or now)) // DAY_SECONDS) + 1),
        "alarms": [asdict(alarm) for alarm in alarms],
        "learning": {
            kind: {name: getattr(state, name) for name in _ROUND_FIELDS}
            for kind, state in read_round_states(settings.artifacts).items()
        },
    }


def ages(measured_at: Mapping[str, float], demoted: Mapping[str, Sequence[str]]) -> str:
    """Return the ages of the scores of a plan as text, the oldest first, and which do not count since the expert is
    demoted."""
    oldest = sorted((when, name) for name, when in measured_at.items())
    days = ((name, f"{(time.time() - when) / DAY_SECONDS:.0f}") for when, name in oldest)
    text = "age of the scores in days: " + (", ".join(f"{name} {age}" for name, age in days) or "unknown")
    until = (f"; ratings count in {', '.join(found)} until coe score --again {name}" for name, found in demoted.items())
    return text + "".join(until)


def _gateway(settings: Settings) -> dict[str, str]:
    """The address of this machine's gateway, and `ready`, `not ready` or `no answer`."""
    host = "127.0.0.1" if settings.host in ANY_HOST else settings.host
    connection = HTTPConnection(host, settings.port, timeout=GATEWAY_TIMEOUT_SECONDS)
    try:
        connection.request("GET", "/health/ready")
        state = "ready" if connection.getresponse().status == HTTPStatus.OK else "not ready"
    except (OSError, HTTPException):
        state = "no answer"
    finally:
        connection.close()
    return {"address": f"{host}:{settings.port}", "state": state}


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


def _residency(settings: Settings) -> list[dict[str, Any]]:
    """Return the state of each shared device: which experts are awake, requested or loading, and the next decision;
    empty if no `coe up` manages devices."""
    try:
        return asyncio.run(fetch_report(settings.residency_link.readlink()))
    except OSError:  # no link, or no process behind it; TimeoutError is one
        return []


def _worth(settings: Settings) -> dict[str, Any] | None:
    """Return the plan in use against always calling one expert, as `coe plan` or `coe retrain` compared them when they
    made it; None without a plan that was made from scores."""
    plan, version = _plan(settings), ArtifactStore(settings.artifacts, ASSIGNMENT).in_use()
    return {"version": version, "against": plan.against} if plan is not None and plan.against else None


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


def _alarms(
    settings: Settings,
    in_use: ActiveState,
    planned: Assignment | None,
    traffic: Traffic,
    spend: Spend,
    *,
    since: float,
    now: float,
) -> tuple[Alarm, ...]:
    """Read the log once, for the alarms, for `traffic` and for `spend`, which also counts requests of CoE's commands.
    `planned` is None if the plan that the gateways serve is unknown."""
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
            return failing_alarms(traffic, experts)
    if planned is None:
        return failing_alarms(traffic, experts)
    plan = _plan(settings)
    worse, demoted = degradations(found, _baseline(plan, planned)), {} if plan is None else plan.demoted
    return (
        *failing_alarms(traffic, experts),
        *share_alarms(found.part(found.time >= now - DAY_SECONDS), planned),
        *degradation_alarms(worse, demoted, planned, scores=_scores_folder(settings)),
    )


def _scores_folder(settings: Settings) -> str:
    """Return the folder that the last plan was made from, as its promotion names it."""
    moves, planned_on = ArtifactStore(settings.artifacts, ASSIGNMENT).history(), "planned on "
    folders = (move.why.removeprefix(planned_on) for move in reversed(moves) if move.why.startswith(planned_on))
    return next(folders, "SCORES")


def _drift(traffic: Traffic, *, test: int) -> dict[str, Any]:
    """The last day compared with the first traffic that the router served.

    All reports of a day are one test, so that frequent reports neither raise false alarms nor weaken the tests.
    """
    both, first, latest = comparison(traffic), traffic.first, list(traffic.latest)
    if min(len(first), len(latest)) < MIN_COMPARED:
        counts = f"{len(first)} earlier requests of this router and {len(latest)} of the day"
        reference = f"too little to compare: {counts}, {MIN_COMPARED} of each are needed"
        return {"reference": reference, "findings": [], "compared": both}
    found = detect_drift(traffic_sample(first), traffic_sample(latest), categories=traffic.categories, test=test)
    reference = f"the first {len(first)} requests of this router in the log's period"
    return {"reference": reference, "findings": [asdict(one) for one in found], "compared": both}
