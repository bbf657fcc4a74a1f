"""`coe status` shows if the gateway is up, which versions are in use and what is wrong. `coe report` shows traffic,
spend, drift, alarms and what the plan is worth."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import typer

from coe.artifacts.redis import publish_traffic_report
from coe.cli.common import Config, Json, print_result, settings_for, table
from coe.cli.plan import against_table
from coe.reports.report import report as build_report
from coe.reports.report import status_report, status_rows, time_text
from coe.reports.spend import DIMENSIONS
from coe.terminal import dollars

Days = Annotated[int, typer.Option("--days", min=1, max=3650, help="Report on the last days of the routing log.")]
Publish = Annotated[bool, typer.Option("--publish", help="Also publish the alarms in the gateways' /metrics.")]
_COUNTS = ("requests", "input_tokens", "output_tokens")
MAX_ROWS = 10
"""Rows of a dimension that are shown; JSON has all."""


def status(config: Config = None, json: Json = False) -> None:
    """Show if the gateway is up, which versions are in use, and what is wrong."""
    from coe.artifacts.artifact_sync import sync_once

    settings = settings_for(config)
    sync_once(settings)
    found = status_report(settings)
    print_result(found, table(("", ""), status_rows(found)), json=json)


def report(days: Days = 7, publish: Publish = False, config: Config = None, json: Json = False) -> None:
    """Show traffic, spend, drift, alarms, and what the plan in use is worth, from the routing log."""
    from coe.artifacts.artifact_sync import sync_once

    settings = settings_for(config)
    sync_once(settings)
    found = build_report(settings, now=time.time(), days=days)
    if publish:
        publish_traffic_report(settings, found)
    print_result(found, _report_lines(found), json=json)


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
    rows.append(("drift", drift["reference"]))
    rows += [("", one["sentence"]) for one in drift["findings"]]
    rows.append(("alarms", "; ".join(one["sentence"] for one in found["alarms"]) or "none"))
    rows += [
        (f"learning: {name}", f"{time_text(one['time'])}: {one['sentence']}") for name, one in found["learning"].items()
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
