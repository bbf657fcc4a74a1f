"""`coe status` shows if the gateway is up, which versions are in use and what is wrong. `coe report` shows what routing
is worth, spend, failures, drift and alarms, on the terminal or as one page."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from coe.artifacts.manifest import ARTIFACT_KINDS
from coe.cli.common import Config, Json, duration_seconds, print_result, settings_for, table, writable_file
from coe.reports.report import ages, page, status_report
from coe.reports.report import report as build_report
from coe.reports.response import publish as publish_report
from coe.reports.spend import DIMENSIONS
from coe.terminal import dollars

Since = Annotated[str, typer.Option("--since", help="Report on requests not older than this, for example 12h or 30d.")]
Against = Annotated[
    str | None, typer.Option("--against", metavar="EXPERT", help="Compare with it alone [default: the dearest].")
]
Html = Annotated[Path | None, typer.Option("--html", callback=writable_file, help="Write the report as one page.")]
Publish = Annotated[bool, typer.Option("--publish", help="Also act on the alarms: metrics, webhook, demotion.")]
ENDS, COUNTS = ("failed", "fallbacks"), ("requests", "input_tokens", "output_tokens")
MAX_ROWS = 10
"""Rows of a dimension that are shown; JSON has all."""


def status(config: Config = None, json: Json = False) -> None:
    """Show if the gateway is up, which versions are in use, and what is wrong."""
    found = status_report(settings_for(config))
    print_result(found, table(("", ""), _status_rows(found)), json=json)


def report(
    since: Since = "7d",
    against: Against = None,
    html: Html = None,
    publish: Publish = False,
    config: Config = None,
    json: Json = False,
) -> None:
    """Show what routing is worth: dollars and ratings against always calling one expert, failures, drift and alarms."""
    settings, seconds = settings_for(config), duration_seconds(since, option="--since")
    found = build_report(settings, now=time.time(), seconds=seconds, against=against)
    if publish:
        found = publish_report(settings, found)
    if html:
        html.write_text(page(found), encoding="utf-8")
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
    drift, day, spend, quality = found["drift"], found["traffic"], found["spend"], found["value"]["quality"]
    yield f"{found['value']['verdict']}\n"
    if quality:
        columns = "", "routed", f"always {found['value']['against']}", "difference"
        rated = (f"{one['value']:.3f} ({one['low']:.3f} to {one['high']:.3f})" for one in quality.values())
        yield table(columns, [("mean rating, 95 %", *rated)]) + "\n"
    rates = f"{day['error_rate']:.1%} failed, {day['aborted_rate']:.1%} aborted"
    rows = [("last day", f"{day['last_day']} requests, {rates}")]
    rows += [(name, ", ".join(f"{one} {count:,}" for one, count in spend[name].items()) or "none") for name in ENDS]
    rows += [("drift", drift["reference"]), *(("", one["sentence"]) for one in drift["findings"])]
    rows.append(("alarms", "; ".join(one["sentence"] for one in found["alarms"]) or "none"))
    rows += [(f"learning: {name}", one["sentence"]) for name, one in found["learning"].items()]
    yield table(("", ""), rows)
    yield from _spend_lines(spend, days=found["days"])


def _spend_lines(found: Mapping[str, Any], *, days: float) -> Iterator[str]:
    """Yield a table of the dollars by dimension, unknown costs, and what each expert would have cost alone."""
    by_name = [("total", "", found["total"])]
    for dimension in DIMENSIONS:
        by_name += [(dimension, row["name"] or "-", row) for row in found["rows"][dimension][:MAX_ROWS]]
    rows = [
        (dimension, name, dollars(row["dollars"]), *(f"{row[field]:,}" for field in COUNTS))
        for dimension, name, row in by_name
    ]
    yield f"\nspend of {days:g} days, the first {MAX_ROWS} of each kind"
    yield table(("", "", ">dollars", ">requests", ">input", ">output"), rows)
    if found["total"]["unpriced"]:
        yield f"{found['total']['unpriced']:,} answered requests have no known cost"
    always = found["always"]
    if always["unknown"]:
        yield f"without `prices` in experts.yaml, so of unknown cost: {', '.join(always['unknown'])}"
    if not any(one["dollars"] for one in always["experts"]):
        yield "nothing to compare: no request has known tokens and a known price"
        return
    alone = [
        (one["expert"], *(dollars(one[field]) for field in ("dollars", "low", "high")), f"{one['measured']:.0%}")
        for one in always["experts"]
    ]
    yield f"\nthe {always['requests']:,} requests with known tokens cost {dollars(always['dollars'])}"
    yield table(("always", ">dollars", ">from", ">to", ">measured"), alone)
    yield f"note: {found['note']}"


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")
