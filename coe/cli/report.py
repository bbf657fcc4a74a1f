"""`coe status` shows if the gateway is up, which versions are in use and what is wrong. `coe report` shows traffic,
spend, drift, alarms and what the plan is worth."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from coe.artifacts.manifest import ARTIFACT_KINDS
from coe.cli.common import Config, Json, print_result, settings_for, table
from coe.cli.plan import against_table
from coe.reports.report import ages, status_report
from coe.reports.report import report as build_report
from coe.reports.response import publish as publish_report
from coe.reports.spend import DIMENSIONS
from coe.terminal import dollars

Days = Annotated[int, typer.Option("--days", min=1, max=3650, help="Report on the last days of the routing log.")]
Publish = Annotated[bool, typer.Option("--publish", help="Also act on the alarms: metrics, webhook, demotion.")]
_COUNTS = ("requests", "input_tokens", "output_tokens")
MAX_ROWS = 10
"""Rows of a dimension that are shown; JSON has all."""


def status(config: Config = None, json: Json = False) -> None:
    """Show if the gateway is up, which versions are in use, and what is wrong."""
    found = status_report(settings_for(config))
    print_result(found, table(("", ""), _status_rows(found)), json=json)


def report(days: Days = 7, publish: Publish = False, config: Config = None, json: Json = False) -> None:
    """Show traffic, spend, drift, alarms, and what the plan in use is worth, from the routing log."""
    settings = settings_for(config)
    found = build_report(settings, now=time.time(), days=days)
    if publish:
        found = publish_report(settings, found)
    print_result(found, _report_lines(found), json=json)


def _status_rows(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the report as rows of a name and a value."""
    in_use = found["in_use"]
    yield "gateway", f"{found['gateway']['state']} at {found['gateway']['address']}"
    yield "config", in_use["config"]
    for kind in ARTIFACT_KINDS:
        since = f", since {_time(in_use[kind]['since'])} by {in_use[kind]['by']}" if in_use[kind]["since"] else ""
        yield kind, f"{in_use[kind]['version'] or 'none, or as declared'}{since}"
    yield from ((f"damaged {kind}", problem) for kind, problem in found["damaged"].items())
    yield "scores", ages(found["measured_at"], found["demoted"])
    yield from (("experts.yaml", one["sentence"]) for one in found["consequences"])
    for device in found["residency"]:
        yield from _residency_rows(device)
    if (last := found["alarms"]) is None:
        yield "alarms", "unknown: no traffic report yet; run coe report --publish, or coe retrain"
        return
    named = [f"{kind} ({', '.join(experts)})" for kind, experts in last["alarms"].items() if experts]
    named += [f"drift ({aspect})" for aspect, shifted in last["drift"].items() if shifted]
    yield "alarms", f"{', '.join(named) or 'none'}, as of {_time(last['time'])}; coe report has more"
    yield from (("", sentence) for sentence in last["sentences"])


def _residency_rows(device: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield a device that experts share: its memory, and each server with who waits and why."""
    yield f"device {device['device']}", f"{device['occupied_gb']:g} of {device['memory_gb']:g} GB in use"
    for one in device["servers"]:
        text = f"{one['tier']}, loaded {one['switches']} times"
        if one["load_s"] is not None:
            text += f", a load took {one['load_s']:.1f} s"
        if one["waiting"]:
            text += f", {one['waiting']} waiting, the oldest for {one['oldest_wait_s']:.1f} s"
        yield f"expert {', '.join(one['experts'])}", text + (f": {one['reason']}" if one["reason"] else "")


def _report_lines(found: Mapping[str, Any]) -> Iterator[str]:
    drift, traffic = found["drift"], found["traffic"]
    rows = [("requests", f"{traffic['last_hour']} in the last hour, {traffic['last_day']} in the last day")]
    if traffic["own"]:
        counts = ", ".join(f"coe {name} {count}" for name, count in traffic["own"].items())
        rows.append(("not counted", f"{counts} in the last day: requests of CoE's own commands"))
    rows.append(("rates", f"{traffic['error_rate']:.1%} failed, {traffic['aborted_rate']:.1%} aborted"))
    rows += [
        (name, ", ".join(f"{one} {share:.0%}" for one, share in traffic[name].items()) or "-")
        for name in ("experts", "categories", "reasons")
    ]
    if traffic["confidence"]:
        rows.append(("confidence", "quartiles " + ", ".join(f"{value:.2f}" for value in traffic["confidence"])))
    rows += [("drift", drift["reference"]), *(("", one["sentence"]) for one in drift["findings"])]
    rows.append(("alarms", "; ".join(one["sentence"] for one in found["alarms"]) or "none"))
    rows += [
        (f"learning: {name}", f"{_time(one['time'])}: {one['sentence']}") for name, one in found["learning"].items()
    ]
    yield table(("", ""), rows)
    yield from _spend_lines(found["spend"], days=found["days"])
    if found["plan"] is None:
        yield "\nthe plan is worth: unknown, as none that was made from scores is in use; run coe score and coe plan"
    else:
        yield against_table(found["plan"]["against"])


def _spend_lines(found: Mapping[str, Any], *, days: int) -> Iterator[str]:
    """Yield a table of the dollars by dimension, unknown costs, and what each expert would have cost alone."""
    total, always = found["total"], found["always"]
    by_name = [("total", "", total)]
    for dimension in DIMENSIONS:
        by_name += [(dimension, row["name"] or "-", row) for row in found["rows"][dimension][:MAX_ROWS]]
    rows = [
        (dimension, name, dollars(row["dollars"]), *(f"{row[field]:,}" for field in _COUNTS))
        for dimension, name, row in by_name
    ]
    yield "\n" + table((f"spend, {days} days", "", ">dollars", ">requests", ">input", ">output"), rows)
    if more := [name for name in DIMENSIONS if len(found["rows"][name]) > MAX_ROWS]:
        yield f"{', '.join(more)}: the first {MAX_ROWS}; --json has all"
    if total["unpriced"]:
        yield f"{total['unpriced']:,} answered requests have no known cost"
    if always["unknown"]:
        yield f"without `prices` in experts.yaml, so of unknown cost: {', '.join(always['unknown'])}"
    if not any(one["dollars"] for one in always["experts"]):
        yield "nothing to compare: no request has known tokens and a known price"
        return
    yield f"the {always['requests']:,} requests with known tokens cost {dollars(always['dollars'])}"
    for one in always["experts"]:
        saved = one["saved"]
        less = f"{dollars(saved)} more" if saved >= 0 else f"{dollars(-saved)} less"
        yield f"always {one['expert']} would have cost {dollars(one['dollars'])}, {less}"
    yield f"note: {found['note']}"


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")
