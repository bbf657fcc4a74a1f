"""Builds the report of `coe status`: what is in use, the last day's traffic, drift, alarms and learning rounds.

The routing log of the last week is read once. `coe retrain` builds the same report for the gateways' metrics.
"""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from coe.artifacts.kinds import ARTIFACT_KINDS, ASSIGNMENT
from coe.artifacts.manifest import noting
from coe.artifacts.store import ArtifactStore
from coe.errors import ArtifactError, DataError
from coe.fleet.residency.client import fetch_report
from coe.jobs.rounds.round import read_round_states
from coe.learning.estimation.experience_loader import load_experience, open_logs
from coe.learning.estimation.logged_uses import LoggedUses
from coe.learning.monitoring.alarms import (
    Alarm,
    degradation_alarms,
    failing_alarms,
    share_alarms,
)
from coe.learning.monitoring.drift import detect_drift
from coe.learning.monitoring.novelty import CategoryProposal, category_entry, propose_categories
from coe.learning.monitoring.savings import LABELS, ROUTING_BIAS, PlanQuality, billed, savings
from coe.learning.monitoring.traffic import Traffic, comparison, embeddings, traffic_sample
from coe.mapping import Assignment, read_plan_file, read_published
from coe.records.record import observed
from coe.settings import Settings

if TYPE_CHECKING:
    from coe.runtime.active_state import ActiveState

HOUR_SECONDS, DAY_SECONDS, WEEK_SECONDS = 3_600.0, 86_400.0, 604_800.0
MAX_ALARM_REQUESTS = 100_000
"""Newest requests of the last week that alarms are computed from."""
_ROUND_FIELDS = ("time", "promoted", "sentence", "report", "judged", "tested")
MIN_COMPARED = 200
"""Requests of each side that a drift test needs."""


def status_report(settings: Settings, *, now: float) -> dict[str, Any]:
    """The report, JSON-able; times are in Unix seconds, shares and rates from 0 to 1.

    `damaged` has the problem of each damaged artifact in use. Without the plan, nothing is compared with its shares.
    Raises ArtifactError for a damaged router, ConfigError for an invalid declaration.
    """
    from coe.runtime.active_state import load_active_state
    from coe.runtime.consequences import consequences_of

    damaged = dict[str, str]()
    in_use = load_active_state(settings, damaged=damaged)
    consequences = consequences_of(settings, in_use.registry, damaged=damaged)
    traffic = Traffic(in_use.router.categories, in_use.router.version, day=now - DAY_SECONDS, hour=now - HOUR_SECONDS)
    logged = LoggedUses(in_use.router.categories)
    planned = None if ASSIGNMENT in damaged else in_use.assignment
    alarms = _alarms(settings, in_use, planned, traffic, logged, now=now)
    used = {kind: _in_use(settings, kind, damaged) for kind in ARTIFACT_KINDS}
    router_days = int((now - (used["router"]["since"] or now)) // DAY_SECONDS)
    return {
        "in_use": {"config": in_use.registry.digest, **used},
        "damaged": damaged,
        "consequences": [asdict(one) for one in consequences],
        "traffic": traffic.summary(),
        "drift": _drift(traffic, test=router_days + 1),
        "alarms": [asdict(alarm) for alarm in alarms],
        "proposed_categories": _proposals(traffic, in_use),
        "savings": _savings(settings, in_use, logged),
        "residency": _residency(settings),
        "learning": {
            kind: {name: getattr(state, name) for name in _ROUND_FIELDS}
            for kind, state in read_round_states(settings.artifacts).items()
        },
    }


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


def _savings(settings: Settings, in_use: ActiveState, logged: LoggedUses) -> dict[str, Any]:
    """Return the bill of the last week's requests, and compare the plan in use with always calling one expert on them.

    `compared` is null without a plan that was made from scores.
    """
    report: dict[str, Any] = {
        "days": int(WEEK_SECONDS // DAY_SECONDS),
        "billed": billed(logged),
        "left_out": dict(logged.left_out),
        "compared": None,
        "unknown": [ROUTING_BIAS, LABELS],
    }
    store = ArtifactStore(settings.artifacts, ASSIGNMENT)
    try:
        if (version := store.in_use()) is None:
            return report
        folder = store.published(version).folder
        plan, file = read_published(folder, version), read_plan_file(folder)
    except ArtifactError:  # what is in use was loaded before it was damaged
        return report
    if plan.record is None or file is None:
        return report
    quality = PlanQuality.from_json(file)
    compared = savings(logged, plan, quality, registry=in_use.registry, effective=in_use.assignment)
    if compared["unmeasured"]:
        names = ", ".join(compared["unmeasured"])
        report["unknown"].append(f"nothing is known of {names}, which the plan in use did not measure")
    return report | {"compared": compared}


def _alarms(
    settings: Settings,
    in_use: ActiveState,
    planned: Assignment | None,
    traffic: Traffic,
    logged: LoggedUses,
    *,
    now: float,
) -> tuple[Alarm, ...]:
    """Read the last week once, for the alarms, for `traffic` and for `logged`. `planned` is None if the plan that the
    gateways serve is unknown."""
    since, experts = now - WEEK_SECONDS, in_use.assignment.experts
    with open_logs(in_use.registry.log.url, base=settings.home) as logs:
        records = logs.records(since=since, until=now, own=traffic.add_own)
        try:
            found = load_experience(
                observed(observed(records, traffic.add), logged.add),
                logs.feedback(since=since),
                categories=traffic.categories,
                experts=experts,
                limit=MAX_ALARM_REQUESTS,
            ).experience
        except DataError:  # no request to learn from; if all failed, that is an alarm
            return failing_alarms(traffic, experts)
    if planned is None:
        return failing_alarms(traffic, experts)
    recent, before = found.part(found.time >= now - DAY_SECONDS), found.part(found.time < now - DAY_SECONDS)
    return (
        *failing_alarms(traffic, experts),
        *share_alarms(recent, planned),
        *degradation_alarms(before, recent, assignment=planned),
    )


def _drift(traffic: Traffic, *, test: int) -> dict[str, Any]:
    """The last day compared with the first traffic that the router served.

    All reports of a day are one test, so that frequent reports neither raise false alarms nor weaken the tests.
    """
    both, first, latest = comparison(traffic), traffic.first, list(traffic.latest)
    if min(len(first), len(latest)) < MIN_COMPARED:
        counts = f"{len(first)} earlier requests of this router in the week and {len(latest)} of the day"
        reference = f"too little to compare: {counts}, {MIN_COMPARED} of each are needed"
        return {"reference": reference, "findings": [], "compared": both}
    found = detect_drift(traffic_sample(first), traffic_sample(latest), categories=traffic.categories, test=test)
    reference = f"the first {len(first)} requests of this router in the week's log"
    return {"reference": reference, "findings": [asdict(one) for one in found], "compared": both}


def _proposals(traffic: Traffic, in_use: ActiveState) -> list[dict[str, Any]]:
    """Proposed categories: exemplars by request id, and an entry for experts.yaml where the log keeps prompts."""
    latest = list(traffic.latest)
    vectors, rows = embeddings(latest)
    declared = in_use.registry.policy.confidence_threshold
    proposals = propose_categories(
        vectors,
        np.array([latest[row].confidence for row in rows]),
        np.array([latest[row].category for row in rows], dtype=np.int64),
        categories=traffic.categories,
        below=in_use.confidence_threshold if declared is None else declared,
    )
    prompts = [one.prompt for one in latest]

    def to_json(proposal: CategoryProposal) -> dict[str, Any]:
        exemplars = [latest[rows[index]] for index in proposal.exemplars]
        shown = [one.prompt for one in exemplars if one.prompt]
        return {
            **proposal.to_json(),
            "exemplars": [one.request_id for one in exemplars],
            "entry": category_entry(shown, prompts) if shown else None,
        }

    return [to_json(one) for one in proposals]
