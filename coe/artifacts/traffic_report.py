"""Stores the last traffic report in a small file of the state folder: jobs write it, gateways show it in `/metrics`."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import orjson

from coe.artifacts.atomic_files import replace_file
from coe.artifacts.redis import open_shared
from coe.registry import load
from coe.settings import Settings

TRAFFIC_REPORT_FILE = "traffic-report.json"
AlarmKind = Literal["collapse", "starvation", "degradation", "failing"]
ALARMS: tuple[AlarmKind, ...] = get_args(AlarmKind)
Aspect = Literal["category mix", "confidence"]
ASPECTS: tuple[Aspect, ...] = get_args(Aspect)


@dataclass(frozen=True, slots=True)
class TrafficReport:
    """At `time` (Unix seconds): experts by kind of alarm, and whether each tested aspect has shifted."""

    time: float
    alarms: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    drift: Mapping[str, bool] = field(default_factory=dict)

    @classmethod
    def of(cls, report: Mapping[str, Any], *, now: float) -> TrafficReport:
        """The part of a `coe report` that metrics show."""
        alarms: dict[str, tuple[str, ...]] = {}
        for alarm in report["alarms"]:
            alarms[alarm["kind"]] = (*alarms.get(alarm["kind"], ()), alarm["expert"])
        drift = {finding["aspect"]: bool(finding["alarm"]) for finding in report["drift"]["findings"]}
        return cls(now, alarms, drift)

    def to_json(self) -> bytes:
        return orjson.dumps(asdict(self))


def read_traffic_report(path: Path) -> TrafficReport | None:
    """The stored report; None where there is none or the file is damaged, since metrics must not fail."""
    try:
        found = orjson.loads(path.read_bytes())
        alarms: dict[str, tuple[str, ...]] = {kind: tuple(found["alarms"].get(kind, ())) for kind in ALARMS}
        drift: dict[str, bool] = {
            aspect: bool(found["drift"][aspect]) for aspect in ASPECTS if aspect in found["drift"]
        }
        return TrafficReport(float(found["time"]), alarms, drift)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def publish_traffic_report(settings: Settings, report: Mapping[str, Any]) -> None:
    """Store the report of `coe report` for this machine's gateways, and for other machines where artifacts are
    shared."""
    content = TrafficReport.of(report, now=time.time()).to_json()
    settings.artifacts.mkdir(parents=True, exist_ok=True)
    share = open_shared(load(settings.config, environ=settings.environ).artifacts)
    if share is not None:
        with closing(share):
            share.put_file(TRAFFIC_REPORT_FILE, content)  # first, or a gateway here could put the former one back
    replace_file(settings.artifacts / TRAFFIC_REPORT_FILE, content)
