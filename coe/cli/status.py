"""`coe status`: what is in use, how traffic goes, what has changed, and what the last round of learning came to."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from coe.artifacts.store import ARTIFACT_KINDS, ArtifactStore
from coe.cli.common import Config, Json, settings_for
from coe.errors import DataError
from coe.fleet.residency.client import ask_tiers
from coe.learning.estimation.experience_loader import gather, open_logs
from coe.learning.monitoring import traffic_report
from coe.learning.monitoring.alarms import Alarm, degradation_alarms, failing_alarms, share_alarms
from coe.learning.monitoring.drift import watch
from coe.learning.monitoring.novelty import Proposal, as_declared, propose
from coe.learning.monitoring.traffic import Traffic, compared, embeddings, sample
from coe.learning.retraining.state import Rounds, read_rounds
from coe.settings import Settings
from coe.terminal import printable, say, say_json

if TYPE_CHECKING:
    from coe.runtime.active_state import ActiveState

Publish = Annotated[bool, typer.Option("--publish", help="Show the alarms in the gateways' /metrics too.")]
HOUR, DAY, WEEK = 3_600.0, 86_400.0, 604_800.0
LIMIT = 100_000
"""Requests of the last week that alarms look at, the newest."""
FEWEST = 200
"""Requests of each side below which they are not compared."""


def status(publish: Publish = False, config: Config = None, json: Json = False) -> None:
    """Show what is in use, how the last day's traffic went, drift, alarms, and what was learnt last."""
    from coe.runtime.artifact_sync import sync_once

    settings = settings_for(config)
    sync_once(settings)
    report = status_report(settings, now=time.time())
    if publish:
        traffic_report.publish(settings, report)
    if json or not sys.stdout.isatty():
        say_json(report)
    else:
        _show(report)


def status_report(settings: Settings, *, now: float) -> dict[str, Any]:
    """All of it, JSON-able; times in Unix seconds, shares and rates from 0 to 1."""
    from coe.runtime.active_state import load_active_state
    from coe.runtime.consequences import consequences_of

    in_use = load_active_state(settings)
    traffic = Traffic(in_use.router.categories, in_use.router.version, day=now - DAY, hour=now - HOUR)
    alarms = _alarms(settings, in_use, traffic, now=now)
    used = {kind: _in_use(settings, kind) for kind in ARTIFACT_KINDS}
    return {
        "in_use": {"config": in_use.registry.digest, **used},
        "consequences": [asdict(one) for one in consequences_of(settings, in_use.registry)],
        "traffic": traffic.summary(),
        "drift": _drift(traffic, days=int((now - (used["router"]["since"] or now)) // DAY)),
        "alarms": [asdict(alarm) for alarm in alarms],
        "proposed_categories": _proposals(traffic, in_use),
        "turns": _turns(settings),
        "learning": {kind: _last(rounds) for kind, rounds in read_rounds(settings.artifacts).items()},
    }


def _last(rounds: Rounds) -> dict[str, Any]:
    """The outcome of a kind's last round; digests and cursors are for the next round alone."""
    shown = ("time", "promoted", "sentence", "report", "judged", "tested")
    return {name: getattr(rounds, name) for name in shown}


def _turns(settings: Settings) -> dict[str, Any]:
    """By expert that takes turns at a device: its tier, requests held, switches; empty where no `coe up` runs any."""
    try:
        return asyncio.run(ask_tiers(settings.turns_link.readlink()))
    except OSError:  # no link, or nobody behind it; TimeoutError is one
        return {}


def _alarms(settings: Settings, in_use: ActiveState, traffic: Traffic, *, now: float) -> tuple[Alarm, ...]:
    """Read the last week once, for the alarms and for `traffic`."""
    with open_logs(in_use.registry.log.url, base=settings.home) as logs:
        try:
            found = gather(
                traffic.watched(logs.records(since=now - WEEK, deadline=now, own=traffic.add_own)),
                logs.feedback(since=now - WEEK),
                categories=traffic.categories,
                experts=in_use.registry.expert_names,
                limit=LIMIT,
            ).experience
        except DataError:  # nothing to learn from; requests that all failed are an alarm all the same
            return failing_alarms(traffic, in_use.registry.expert_names)
    failing = failing_alarms(traffic, in_use.registry.expert_names)
    recent, before = (found.part(rows) for rows in (found.time >= now - DAY, found.time < now - DAY))
    worse = degradation_alarms(before, recent, assignment=in_use.assignment)
    return failing + share_alarms(recent, in_use.assignment) + worse


def _in_use(settings: Settings, kind: str) -> dict[str, Any]:
    """The version in use, None for what experts.yaml declares, and its last move where one is noted."""
    store = ArtifactStore(settings.artifacts, kind)
    move = store.last_move()
    return {"version": store.in_use(), "since": move.time if move else None, "by": move.by if move else None}


def _drift(traffic: Traffic, *, days: int) -> dict[str, Any]:
    """The last day against the first traffic that the router served. A day is one look, so that asking often neither
    raises false alarms nor blunts the tests."""
    both = compared(traffic)
    if min(len(traffic.first), len(traffic.latest)) < FEWEST:
        told = f"{len(traffic.first)} earlier requests of this router in the week and {len(traffic.latest)} of the day"
        reference = f"too little to compare: {told}, {FEWEST} of each are needed"
        return {"reference": reference, "findings": [], "compared": both}
    found = watch(sample(traffic.first), sample(list(traffic.latest)), categories=traffic.categories, look=days + 1)
    reference = f"the first {len(traffic.first)} requests of this router that the week's log has"
    return {"reference": reference, "findings": [asdict(one) for one in found], "compared": both}


def _proposals(traffic: Traffic, in_use: ActiveState) -> list[dict[str, Any]]:
    """Proposed categories; exemplars by request id, and as an entry for experts.yaml where the log keeps prompts."""
    latest = list(traffic.latest)
    vectors, rows = embeddings(latest)
    declared = in_use.registry.policy.confidence_threshold
    found = propose(
        vectors,
        np.array([latest[row][1] for row in rows]),
        np.array([latest[row][0] for row in rows], dtype=np.int64),
        categories=traffic.categories,
        below=in_use.confidence_threshold if declared is None else declared,
    )
    others = [one[3] for one in latest]

    def told(one: Proposal) -> dict[str, Any]:
        shown = [latest[rows[index]] for index in one.exemplars]
        prompts = [prompt for _, _, _, prompt, _ in shown if prompt]
        entry = as_declared(prompts, others) if prompts else None
        names = [request_id for *_, request_id in shown]
        return {**asdict(one), "sentence": one.sentence, "exemplars": names, "entry": entry}

    return [told(one) for one in found]


def _show(report: Mapping[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(show_header=False, box=None, pad_edge=False)
    for name, value in _lines(report):
        table.add_row(Text(printable(name), style="bold"), Text(printable(value)))
    Console().print(table)
    for one in report["proposed_categories"]:
        if one["entry"]:
            say(f"\n# for experts.yaml, under categories:\n{one['entry']}")


def _lines(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    traffic, drift = report["traffic"], report["drift"]
    lines = [("config", report["in_use"]["config"])]
    for kind in ARTIFACT_KINDS:
        used = report["in_use"][kind]
        since = f", since {_time(used['since'])} by {used['by']}" if used["since"] else ""
        lines.append((kind, f"{used['version'] or 'none, or as declared'}{since}"))
    lines += [("experts.yaml", one["sentence"]) for one in report["consequences"]]
    lines += [(f"expert {name}", _turn(told)) for name, told in report["turns"].items()]
    lines.append(("requests", f"{traffic['last_hour']} in the last hour, {traffic['last_day']} in the last day"))
    if traffic["own"]:
        told = ", ".join(f"coe {name} {count}" for name, count in traffic["own"].items())
        lines.append(("not counted", f"{told} in the last day: requests of CoE's own commands"))
    lines.append(("rates", f"{traffic['error_rate']:.1%} failed, {traffic['aborted_rate']:.1%} aborted"))
    lines += [(name, _said(traffic[name])) for name in ("experts", "categories", "reasons")]
    if traffic["confidence"]:
        lines.append(("confidence", "quartiles " + ", ".join(f"{value:.2f}" for value in traffic["confidence"])))
    lines.append(("drift", drift["reference"]))
    lines += [("", one["sentence"]) for one in drift["findings"]]
    lines.append(("alarms", "; ".join(one["sentence"] for one in report["alarms"]) or "none"))
    lines += [("new category?", one["sentence"]) for one in report["proposed_categories"]]
    for kind, last in report["learning"].items():
        lines.append((f"learnt: {kind}", f"{_time(last['time'])}: {last['sentence']}"))
    return lines


def _turn(told: Mapping[str, Any]) -> str:
    held = f", {told['held']} requests held" if told["held"] else ""
    return f"{told['tier']}, woken {told['switches']} times{held}"


def _said(shares: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {share:.0%}" for name, share in shares.items()) or "-"


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")
