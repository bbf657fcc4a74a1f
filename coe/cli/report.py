"""`coe status` shows if the gateway is up, which versions are in use and what is wrong. `coe report` shows traffic,
spend, drift, alarms and what the plan is worth."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from coe.artifacts.kinds import ARTIFACT_KINDS
from coe.artifacts.traffic_report import publish_traffic_report
from coe.cli.common import Config, ConfigFile, Json, settings_for
from coe.cli.plan import against_lines
from coe.reports.report import report as build_report
from coe.reports.report import status_report
from coe.reports.spend import DIMENSIONS
from coe.terminal import dollars, print_json, print_line, printable

Days = Annotated[int, typer.Option("--days", min=1, max=3650, help="Report on the last days of the routing log.")]
Publish = Annotated[bool, typer.Option("--publish", help="Also publish the alarms in the gateways' /metrics.")]
MAX_ROWS = 10
"""Rows of a dimension that are shown; JSON has all."""


def status(file: ConfigFile = None, config: Config = None, json: Json = False) -> None:
    """Show if the gateway is up, which versions are in use, and what is wrong."""
    from coe.artifacts.artifact_sync import sync_once

    settings = settings_for(config, file)
    sync_once(settings)
    _print(status_report(settings), lambda found: _show(_status_lines(found)), json=json)


def report(
    file: ConfigFile = None, days: Days = 7, publish: Publish = False, config: Config = None, json: Json = False
) -> None:
    """Show traffic, spend, drift, alarms, and what the plan in use is worth, from the routing log."""
    from coe.artifacts.artifact_sync import sync_once

    settings = settings_for(config, file)
    sync_once(settings)
    found = build_report(settings, now=time.time(), days=days)
    if publish:
        publish_traffic_report(settings, found)
    _print(found, _show_report, json=json)


def _print(report: Mapping[str, Any], show: Callable[[Mapping[str, Any]], None], *, json: bool) -> None:
    """Print the report: as JSON with --json, and where the output is no terminal."""
    if json or not sys.stdout.isatty():
        print_json(report)
    else:
        show(report)


def _show(lines: Sequence[tuple[str, str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(show_header=False, box=None, pad_edge=False)
    for name, value in lines:
        table.add_row(Text(printable(name), style="bold"), Text(printable(value)))
    Console().print(table)


def _status_lines(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The report as (name, value) lines."""
    gateway = found["gateway"]
    lines = [("gateway", f"{gateway['state']} at {gateway['address']}"), ("config", found["in_use"]["config"])]
    lines += [(kind, _in_use(found["in_use"][kind])) for kind in ARTIFACT_KINDS]
    lines += [(f"damaged {kind}", problem) for kind, problem in found["damaged"].items()]
    lines += [("experts.yaml", one["sentence"]) for one in found["consequences"]]
    for device in found["residency"]:
        lines += _residency_lines(device)
    return [*lines, ("alarms", _alarms(found["alarms"]))]


def _alarms(found: Mapping[str, Any] | None) -> str:
    """The alarms of the last traffic report."""
    if found is None:
        return "unknown: no traffic report yet; run coe report --publish, or coe retrain"
    named = [f"{kind} ({', '.join(experts)})" for kind, experts in found["alarms"].items() if experts]
    named += [f"drift ({aspect})" for aspect, shifted in found["drift"].items() if shifted]
    return f"{', '.join(named) or 'none'}, as of {_time(found['time'])}; coe report has more"


def _show_report(found: Mapping[str, Any]) -> None:
    drift = found["drift"]
    lines = [*_traffic_lines(found["traffic"]), ("drift", drift["reference"])]
    lines += [("", one["sentence"]) for one in drift["findings"]]
    lines.append(("alarms", "; ".join(one["sentence"] for one in found["alarms"]) or "none"))
    lines += [("new category?", one["sentence"]) for one in found["proposed_categories"]]
    lines += [
        (f"learning: {kind}", f"{_time(one['time'])}: {one['sentence']}") for kind, one in found["learning"].items()
    ]
    _show(lines)
    for one in found["proposed_categories"]:
        if one["entry"]:
            print_line(f"\n# for experts.yaml, under categories:\n{one['entry']}")
    for line in (*_spend_lines(found["spend"], days=found["days"]), *_worth_lines(found["plan"])):
        print_line(line)


def _spend_lines(found: Mapping[str, Any], *, days: int) -> list[str]:
    """Return a table of the dollars by dimension, unknown costs, and what each expert would have cost alone."""
    total, always = found["total"], found["always"]
    lines = [f"\n{f'spend, {days} days':41} {'dollars':>12} {'requests':>10} {'input':>14} {'output':>14}"]
    lines.append(_spend_row("total", "", total))
    for dimension in DIMENSIONS:
        rows = found["rows"][dimension]
        lines += [_spend_row(dimension, row["name"] or "-", row) for row in rows[:MAX_ROWS]]
        if len(rows) > MAX_ROWS:
            lines.append(f"{dimension:16} {len(rows) - MAX_ROWS} more, in --json")
    if total["unpriced"]:
        lines.append(f"{total['unpriced']:,} answered requests have no known cost")
    if always["unknown"]:
        lines.append(f"without `prices` in experts.yaml, so of unknown cost: {', '.join(always['unknown'])}")
    if not any(one["dollars"] for one in always["experts"]):
        return [*lines, "nothing to compare: no request has known tokens and a known price"]
    lines.append(f"the {always['requests']:,} requests with known tokens cost {dollars(always['dollars'])}")
    for one in always["experts"]:
        saved = one["saved"]
        less = f"{dollars(saved)} more" if saved >= 0 else f"{dollars(-saved)} less"
        lines.append(f"always {one['expert']} would have cost {dollars(one['dollars'])}, {less}")
    return [*lines, f"note: {found['note']}"]


def _spend_row(dimension: str, name: str, row: Mapping[str, Any]) -> str:
    counts = f"{row['requests']:10,} {row['input_tokens']:14,} {row['output_tokens']:14,}"
    return f"{dimension:16} {name:24} {dollars(row['dollars']):>12} {counts}"


def _worth_lines(plan: Mapping[str, Any] | None) -> list[str]:
    """Return the plan in use against each expert alone."""
    if plan is None:
        return ["\nthe plan is worth: unknown, as none that was made from scores is in use; run coe score and coe plan"]
    return against_lines(plan["against"])


def _traffic_lines(traffic: Mapping[str, Any]) -> list[tuple[str, str]]:
    lines = [("requests", f"{traffic['last_hour']} in the last hour, {traffic['last_day']} in the last day")]
    if traffic["own"]:
        counts = ", ".join(f"coe {name} {count}" for name, count in traffic["own"].items())
        lines.append(("not counted", f"{counts} in the last day: requests of CoE's own commands"))
    lines.append(("rates", f"{traffic['error_rate']:.1%} failed, {traffic['aborted_rate']:.1%} aborted"))
    lines += [(name, _shares(traffic[name])) for name in ("experts", "categories", "reasons")]
    if traffic["confidence"]:
        lines.append(("confidence", "quartiles " + ", ".join(f"{value:.2f}" for value in traffic["confidence"])))
    return lines


def _in_use(used: Mapping[str, Any]) -> str:
    since = f", since {_time(used['since'])} by {used['by']}" if used["since"] else ""
    return f"{used['version'] or 'none, or as declared'}{since}"


def _residency_lines(device: Mapping[str, Any]) -> list[tuple[str, str]]:
    """A device that experts share: its memory, and each server with who waits and why."""
    used = f"{device['occupied_gb']:g} of {device['memory_gb']:g} GB in use"
    return [
        (f"device {device['device']}", used),
        *((f"expert {', '.join(one['experts'])}", _server(one)) for one in device["servers"]),
    ]


def _server(one: Mapping[str, Any]) -> str:
    waiting = f", {one['waiting']} waiting, the oldest for {one['oldest_wait_s']:.1f} s" if one["waiting"] else ""
    reason = f": {one['reason']}" if one["reason"] else ""
    took = "" if one["load_s"] is None else f", a load took {one['load_s']:.1f} s"
    return f"{one['tier']}, loaded {one['switches']} times{took}{waiting}{reason}"


def _shares(shares: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {share:.0%}" for name, share in shares.items()) or "-"


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")
