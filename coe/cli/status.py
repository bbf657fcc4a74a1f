"""`coe status`: shows what is in use, how traffic goes, drift, alarms and the last learning rounds."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from coe.artifacts.kinds import ARTIFACT_KINDS
from coe.cli.common import Config, Json, settings_for
from coe.jobs.status_report import status_report
from coe.learning.monitoring.traffic_report import publish_traffic_report
from coe.learning.paired_scores import Difference
from coe.terminal import print_json, print_line, printable

Publish = Annotated[bool, typer.Option("--publish", help="Also publish the alarms in the gateways' /metrics.")]


def status(publish: Publish = False, config: Config = None, json: Json = False) -> None:
    """Show what is in use, the last day's traffic, drift, alarms, and the last learning rounds."""
    from coe.runtime.artifact_sync import sync_once

    settings = settings_for(config)
    sync_once(settings)
    report = status_report(settings, now=time.time())
    if publish:
        publish_traffic_report(settings, report)
    if json or not sys.stdout.isatty():
        print_json(report)
    else:
        _show(report)


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
            print_line(f"\n# for experts.yaml, under categories:\n{one['entry']}")


def _lines(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The report as (name, value) lines."""
    drift = report["drift"]
    lines = [("config", report["in_use"]["config"])]
    lines += [(kind, _in_use(report["in_use"][kind])) for kind in ARTIFACT_KINDS]
    lines += [("experts.yaml", one["sentence"]) for one in report["consequences"]]
    lines += [(f"expert {name}", _residency(state)) for name, state in report["residency"].items()]
    lines += _traffic_lines(report["traffic"])
    lines += _savings_lines(report["savings"])
    lines.append(("drift", drift["reference"]))
    lines += [("", one["sentence"]) for one in drift["findings"]]
    lines.append(("alarms", "; ".join(one["sentence"] for one in report["alarms"]) or "none"))
    lines += [("recipe", one["sentence"]) for one in report["recipes"]]
    lines += [("new category?", one["sentence"]) for one in report["proposed_categories"]]
    lines += [
        (f"learning: {kind}", f"{_time(one['time'])}: {one['sentence']}") for kind, one in report["learning"].items()
    ]
    return lines


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


def _savings_lines(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return lines of the bill, and of the plan compared with always calling one expert."""
    bill, compared = found["billed"], found["compared"]
    if not bill["requests"]:
        return []
    count = f"{bill['with_cost']} of {bill['requests']} requests in {found['days']} days"
    lines = [("billed", f"{_dollars(bill['dollars'])} for {count}")]
    if compared is None:
        return [*lines, ("savings", "unknown: no plan made from scores is in use; run coe score and coe plan")]
    plan = compared["plan"]
    lines.append(("this plan", f"{_dollars(plan['dollars'])} at quality {plan['quality']:.3f} on these requests"))
    for one in compared["always"]:
        level = " (level)" if Difference(one["difference"], one["error"]).verdict == "level" else ""
        difference = f"quality {one['quality']:.3f}, {-one['difference']:+.3f} ± {one['error']:.3f}{level}"
        saved = "" if one["saved"] is None else f"; the plan saves {_dollars(one['saved'])}"
        lines.append((f"always {one['expert']}", f"{_dollars(one['dollars'])}, {difference}{saved}"))
    return [*lines, *(("not known", sentence) for sentence in found["unknown"])]


def _dollars(amount: float | None) -> str:
    if amount is None:
        return "unknown cost"
    return f"-${-amount:.4g}" if amount < 0 else f"${amount:.4g}"


def _in_use(used: Mapping[str, Any]) -> str:
    since = f", since {_time(used['since'])} by {used['by']}" if used["since"] else ""
    return f"{used['version'] or 'none, or as declared'}{since}"


def _residency(state: Mapping[str, Any]) -> str:
    waiting = f", {state['waiting']} requests waiting" if state["waiting"] else ""
    return f"{state['tier']}, woken {state['switches']} times{waiting}"


def _shares(shares: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {share:.0%}" for name, share in shares.items()) or "-"


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")
