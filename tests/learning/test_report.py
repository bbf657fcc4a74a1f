"""The reports of `coe status` and `coe report`, and the traffic report in the metrics."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import orjson
import pytest

from coe.artifacts.manifest import replace_file
from coe.artifacts.redis import (
    TRAFFIC_REPORT_FILE,
    TrafficReport,
    publish_traffic_report,
    read_traffic_report,
)
from coe.artifacts.store import ArtifactStore
from coe.cli.report import _status_rows
from coe.records import open_log_and_feedback
from coe.records.record import RoutingRecord
from coe.reports.report import report, status_report
from coe.settings import Settings
from gateway.observability.metrics import Metrics, exposition
from gateway.observability.state_metrics import add_traffic_metrics
from gateway.services import Services
from tests.admin.samples import planned
from tests.fakes import gateway_of, registry_of
from tests.gateway import words_server
from tests.learning.samples import record
from tests.observability.pages import names, value

URL = "sqlite:///routing-log.sqlite"

REPORT: dict[str, Any] = {
    "alarms": [{"kind": "starvation", "expert": "painter"}, {"kind": "starvation", "expert": "nobody"}],
    "drift": {"findings": [{"aspect": "confidence", "alarm": True}, {"aspect": "category mix", "alarm": False}]},
}


@pytest.mark.anyio
async def test_the_gateway_shows_the_last_traffic_report_and_nothing_before_it(tmp_path: Path) -> None:
    async with gateway_of() as gateway:
        shown = _shown(tmp_path / TRAFFIC_REPORT_FILE, gateway.services)
        assert value(shown(), "coe_alarm", kind="failing", expert="painter") == 0
        assert b"starvation" not in shown()
        replace_file(tmp_path / TRAFFIC_REPORT_FILE, TrafficReport.of(REPORT, now=7.0).to_json())
        found = shown()
        assert value(found, "coe_alarm", kind="starvation", expert="painter") == 1
        assert value(found, "coe_alarm", kind="collapse", expert="painter") == 0
        assert b"nobody" not in found
        assert value(found, "coe_drift", kind="confidence") == 1
        assert value(found, "coe_drift", kind="category mix") == 0
        assert value(found, "coe_traffic_report_timestamp_seconds") == 7
        replace_file(tmp_path / TRAFFIC_REPORT_FILE, TrafficReport(8.0).to_json())
        assert value(shown(), "coe_traffic_report_timestamp_seconds") == 8
        replace_file(tmp_path / TRAFFIC_REPORT_FILE, b'{"time": ')
        assert names(shown()).isdisjoint({"coe_traffic_report_timestamp_seconds", "coe_drift"})
        assert b"starvation" not in shown()


def _shown(path: Path, current: Services) -> Callable[[], bytes]:
    metrics = Metrics()
    add_traffic_metrics(metrics, path, current)
    return lambda: exposition(metrics.own_families())


def logged(settings: Settings, records: list[RoutingRecord]) -> None:
    async def write() -> None:
        log = open_log_and_feedback(URL, base=settings.home)[0]
        await log.append(records)
        await log.aclose()

    asyncio.run(write())


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """The report for a declaration with the word router in use."""
    monkeypatch.setattr("coe.artifacts.active_state.load_active_state", words_server.read)
    declared = registry_of(log={"url": URL}, policy={"confidence_threshold": 0.5}).model_dump(
        mode="json", exclude_none=True
    )
    (tmp_path / "experts.yaml").write_bytes(orjson.dumps(declared))
    return Settings.read({}, config=tmp_path / "experts.yaml")


def traffic(count: int, *, start: float, expert: str, uncertain_share: float = 0.0) -> list[RoutingRecord]:
    """Requests of all three categories to one expert, a share of them unsure."""
    made = []
    for number in range(count):
        category = ("code", "art", "general")[number % 3]
        odd = number < uncertain_share * count
        made.append(
            record(
                f"{start}-{number}",
                time=start + number,
                category="general" if odd else category,
                confidence=0.3 if odd else 0.9,
                expert=expert,
                candidates=("coder", "painter", "generalist"),
                probabilities={name: 0.9 if name == category else 0.05 for name in ("code", "art", "general")},
                router="words",
            )
        )
    return made


def test_a_report_finds_a_shift_and_an_expert_that_gets_all_traffic(settings: Settings) -> None:
    now = time.time()
    logged(settings, traffic(600, start=now - 3 * 86_400, expert="coder"))
    logged(settings, traffic(600, start=now - 7_200, expert="coder", uncertain_share=0.4))
    found = report(settings, now=now)
    assert {(one["kind"], one["expert"]) for one in found["alarms"]} == {
        ("collapse", "coder"),
        ("starvation", "painter"),
        ("starvation", "generalist"),
    }
    shifted = {one["aspect"] for one in found["drift"]["findings"] if one["alarm"]}
    assert shifted == {"category mix", "confidence"}
    both = found["drift"]["compared"]
    assert both["requests"] == {"before": 600, "now": 600}
    assert both["categories"]["before"] == pytest.approx(dict.fromkeys(("code", "art", "general"), 1 / 3), abs=1e-4)
    assert both["categories"]["now"]["general"] == pytest.approx(0.4 + 0.6 / 3, abs=1e-4)
    assert both["confidence"]["now"] == [0, 0, 0, 0.4, 0, 0, 0, 0, 0, 0.6]
    publish_traffic_report(settings, found)
    published = read_traffic_report(settings.artifacts / TRAFFIC_REPORT_FILE)
    assert published is not None
    assert published.alarms["collapse"] == ("coder",)
    assert published.drift["confidence"]
    assert published.time == pytest.approx(now, abs=60)


def test_a_service_without_traffic_has_nothing_to_report(settings: Settings) -> None:
    found = report(settings, now=time.time())
    assert (found["alarms"], found["drift"]["findings"]) == ([], [])
    assert found["drift"]["compared"] is None
    assert TrafficReport.of(found, now=1.0) == TrafficReport(1.0)


def test_a_damaged_plan_is_named_with_its_remedy_and_the_rest_is_reported(settings: Settings) -> None:
    now = time.time()
    logged(settings, traffic(600, start=now - 7_200, expert="coder"))
    registry = registry_of(log={"url": URL})
    version, _ = planned(settings, registry)
    assert status_report(settings)["damaged"] == {}
    assert "collapse" in {one["kind"] for one in report(settings, now=now)["alarms"]}
    plan = settings.artifacts / "assignment" / version
    (plan / "plan.json").write_text("half of it")
    found, status = report(settings, now=now), status_report(settings)
    (problem,) = status["damaged"].values()
    assert problem.startswith(f"{plan / 'plan.json'}: missing or changed since it was published")
    assert problem.endswith(
        "make it again with `coe plan`; if it is in use, `coe rollback assignment` restores the version before"
    )
    assert status["in_use"]["assignment"]["version"] == version
    assert found["traffic"]["last_day"] == 600
    assert found["alarms"] == []  # the shares of the plan, which gateways still serve, are unknown
    assert ("damaged assignment", problem) in _status_rows(status)


def test_status_names_damage_of_every_artifact_in_use_and_of_a_history(settings: Settings) -> None:
    for kind in ("router", "assignment", "gate"):
        store = ArtifactStore(settings.artifacts, kind)
        with store.draft() as draft:
            (draft / "file").write_text("")
            store.promote(store.publish(draft, categories=(), data="", metrics={}).manifest.version)
        (store.folder(str(store.in_use())) / "manifest.json").write_text("half")
    (settings.artifacts / "gate" / "history.jsonl").write_text("half")
    found = status_report(settings)
    assert set(found["damaged"]) == {"router", "assignment", "gate", "gate history"}
    assert found["in_use"]["gate"]["since"] is None


def test_status_says_if_the_gateway_is_up_and_which_alarms_the_last_report_raised(settings: Settings) -> None:
    def lines() -> dict[str, str]:
        return dict(_status_rows(status_report(replace(settings, port=server.server_address[1]))))

    class Ready(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/health/ready" else 404)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    now = time.time()
    logged(settings, traffic(600, start=now - 7_200, expert="coder"))
    with HTTPServer(("127.0.0.1", 0), Ready) as server, ThreadPoolExecutor(1) as threads:
        threads.submit(server.handle_request)
        found = lines()
        assert found["gateway"] == f"ready at 127.0.0.1:{server.server_address[1]}"
        assert found["alarms"].startswith("unknown: no traffic report yet")
    publish_traffic_report(settings, report(settings, now=now))
    found = lines()
    assert found["gateway"].startswith("no answer at 127.0.0.1:")
    assert found["alarms"].startswith("collapse (coder), starvation (painter, generalist), as of ")
