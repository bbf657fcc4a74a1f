"""`coe status` shows what is in use, how traffic goes, drift, alarms and the last learning rounds; `coe spend` sums the
dollars of the routing log, and `coe history` shows traffic over time."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from coe.artifacts.kinds import ARTIFACT_KINDS
from coe.cli.common import Config, ConfigFile, Json, declaration_for, duration_seconds, settings_for
from coe.jobs.status_report import status_report
from coe.learning.estimation.experience_loader import open_logs
from coe.learning.monitoring.history import BUCKETS, Period, TrafficHistory, read_history
from coe.learning.monitoring.spend import DIMENSIONS, Dimension, Spend
from coe.learning.monitoring.traffic_report import publish_traffic_report
from coe.learning.paired_scores import Difference
from coe.records import require_log
from coe.terminal import dollars, print_json, print_line, printable

Publish = Annotated[bool, typer.Option("--publish", help="Also publish the alarms in the gateways' /metrics.")]

By = Annotated[str, typer.Option("--by", help="What to sum by, separated by commas: key, tenant, expert, category.")]
Since = Annotated[str, typer.Option("--since", help="Requests not older than this, for example 12h, 7d or 30d.")]


def status(file: ConfigFile = None, publish: Publish = False, config: Config = None, json: Json = False) -> None:
    """Show what is in use, the last day's traffic, drift, alarms, and the last learning rounds."""
    from coe.runtime.artifact_sync import sync_once

    settings = settings_for(config, file)
    sync_once(settings)
    report = status_report(settings, now=time.time())
    if publish:
        publish_traffic_report(settings, report)
    _print(report, _show, json=json)


def spend(
    file: ConfigFile = None, by: By = "expert", since: Since = "7d", config: Config = None, json: Json = False
) -> None:
    """Show what the requests in the routing log cost, and what always calling one expert would have cost."""
    dimensions, seconds = _dimensions(by), duration_seconds(since, option="--since")
    now, (settings, registry) = time.time(), declaration_for(config, file)
    require_log(registry.log.url, base=settings.home)
    found = Spend(registry, dimensions)
    with open_logs(registry.log.url, base=settings.home) as logs:
        found.observe(logs.all(since=now - seconds, until=now))
        report = {"since": now - seconds, "until": now, **found.report(), "damaged": logs.damaged}
    _print(report, _show_spend, json=json)


PeriodOption = Annotated[Period, typer.Option("--since", help="The last hour, day or week.")]


def history(file: ConfigFile = None, since: PeriodOption = "1d", config: Config = None, json: Json = False) -> None:
    """Show traffic, errors, latency, satisfaction and cost over time, from a sample of the routing log."""
    (count, seconds), (settings, registry) = BUCKETS[since], declaration_for(config, file)
    require_log(registry.log.url, base=settings.home)
    found = TrafficHistory(time.time() - count * seconds, count=count, seconds=seconds)
    with open_logs(registry.log.url, base=settings.home) as logs:
        read_history(logs, found)
        report = {**found.report(), "damaged": logs.damaged}
    _print(report, _show_history, json=json)


def _print(report: Mapping[str, Any], show: Callable[[Mapping[str, Any]], None], *, json: bool) -> None:
    """Print the report: as JSON with --json, and where the output is no terminal."""
    if json or not sys.stdout.isatty():
        print_json(report)
    else:
        show(report)


def _show_history(report: Mapping[str, Any]) -> None:
    print_line(f"{'from':16} {'requests':>9} {'failed':>8} {'p50 ms':>8} {'p95 ms':>8} {'rating':>7} {'dollars':>10}")
    for index, bucket in enumerate(report["buckets"]):
        total, begin = bucket["total"], datetime.fromtimestamp(report["start"] + index * report["seconds"], UTC)
        if total["requests"]:
            times = (total[f"first_token_{part}_ms"] for part in ("p50", "p95"))
            p50, p95 = ("-" if value is None else f"{value:.0f}" for value in times)
            rating = "-" if total["satisfaction"] is None else f"{total['satisfaction']:.2f}"
            mark = " (estimated from a sample)" if bucket["sampled"] else ""
            print_line(
                f"{begin:%Y-%m-%d %H:%M} {total['requests']:9,.0f} {total['failed']:8,.0f} {p50:>8} {p95:>8} "
                f"{rating:>7} {_dollars(total['dollars']):>10}{mark}"
            )


def _dimensions(by: str) -> tuple[Dimension, ...]:
    named = [name.strip() for name in by.split(",")]
    if wrong := [name for name in named if name not in DIMENSIONS]:
        raise typer.BadParameter(f"{wrong[0]!r} is not one of {', '.join(DIMENSIONS)}", param_hint="--by")
    return tuple(name for name in DIMENSIONS if name in named)


def _show_spend(report: Mapping[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table, total = Table(box=None, pad_edge=False), report["total"]
    for name in (*report["by"], "dollars", "requests", "input tokens", "output tokens"):
        table.add_column(name, justify="left" if name in report["by"] else "right")
    for row in (*report["rows"], {**dict.fromkeys(report["by"], ""), report["by"][0]: "total", **total}):
        names = [Text(printable(row[name] or "-")) for name in report["by"]]
        counts = (f"{row[name]:,}" for name in ("requests", "input_tokens", "output_tokens"))
        table.add_row(*names, _dollars(row["dollars"]), *counts)
    Console().print(table)
    for line in _spend_lines(report):
        print_line(line)


def _spend_lines(report: Mapping[str, Any]) -> list[str]:
    """Return the lines below the table: unknown costs, and the baselines."""
    total, always = report["total"], report["always"]
    lines = [f"{total['unpriced']:,} answered requests have no known cost"] if total["unpriced"] else []
    if always["unknown"]:
        lines.append(f"without `prices` in experts.yaml, so of unknown cost: {', '.join(always['unknown'])}")
    if not any(one["dollars"] for one in always["experts"]):
        return [*lines, "nothing to compare: no request has known tokens and a known price"]
    lines.append(f"the {always['requests']:,} requests with known tokens cost {_dollars(always['dollars'])}")
    for one in always["experts"]:
        saved = one["saved"]
        less = f"{_dollars(saved)} more" if saved >= 0 else f"{_dollars(-saved)} less"
        lines.append(f"always {one['expert']} would have cost {_dollars(one['dollars'])}, {less}")
    return [*lines, f"note: {report['note']}"]


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
    lines += [(f"damaged {kind}", problem) for kind, problem in report["damaged"].items()]
    lines += [("experts.yaml", one["sentence"]) for one in report["consequences"]]
    for device in report["residency"]:
        lines += _residency_lines(device)
    lines += _traffic_lines(report["traffic"])
    lines += _savings_lines(report["savings"])
    lines.append(("drift", drift["reference"]))
    lines += [("", one["sentence"]) for one in drift["findings"]]
    lines.append(("alarms", "; ".join(one["sentence"] for one in report["alarms"]) or "none"))
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
    return "unknown cost" if amount is None else dollars(amount)


def _in_use(used: Mapping[str, Any]) -> str:
    since = f", since {_time(used['since'])} by {used['by']}" if used["since"] else ""
    return f"{used['version'] or 'none, or as declared'}{since}"


def _residency_lines(device: Mapping[str, Any]) -> list[tuple[str, str]]:
    """A device that experts share: its memory, the next decision, and each server with who waits and why."""
    used = f"{device['occupied_gb']:g} of {device['memory_gb']:g} GB in use; next {device['next']['sentence']}"
    return [
        (f"device {device['device']}", used),
        *((f"expert {', '.join(one['experts'])}", _server(one)) for one in device["servers"]),
    ]


def _server(one: Mapping[str, Any]) -> str:
    waiting = f", {one['waiting']} waiting, the oldest for {one['oldest_wait_s']:.1f} s" if one["waiting"] else ""
    reason = f": {one['reason']}" if one["reason"] else ""
    choice = f", may use {' or '.join(one['devices'])}" if len(one["devices"]) > 1 else ""
    return f"{one['tier']}, loaded {one['switches']} times, a load takes {one['load_s']:.1f} s{choice}{waiting}{reason}"


def _shares(shares: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {share:.0%}" for name, share in shares.items()) or "-"


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")
