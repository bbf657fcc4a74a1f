"""An expert that got worse: the alarm, the demotion and the webhook of one traffic report."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import orjson
import pytest

from coe.artifacts.redis import TRAFFIC_REPORT_FILE, read_traffic_report
from coe.artifacts.store import ArtifactStore
from coe.cli.report import _status_rows
from coe.records import open_log_and_feedback
from coe.records.record import Feedback
from coe.reports import response
from coe.reports.report import report, status_report
from coe.settings import Settings
from tests.admin.samples import measured_registry, planned
from tests.learning.samples import record
from tests.learning.test_report import URL, settings

__all__ = ["settings"]


class Hook(BaseHTTPRequestHandler):
    """A webhook that answers with the next status, 200 by default."""

    got: list[tuple[dict[str, str], bytes]]
    statuses: list[int]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.got.append(({name.lower(): value for name, value in self.headers.items()}, body))
        self.send_response(self.statuses.pop() if self.statuses else 200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


def write_log(settings: Settings, *, now: float) -> None:
    """Three days of good ratings of the coder in `code`, and a day of bad ones."""

    async def write() -> None:
        log, feedback = open_log_and_feedback(URL, base=settings.home)
        times = [now - 4 * 86_400 + n * 4 * 86_400 / 240 for n in range(240)]
        likely = {"code": 0.9, "art": 0.05, "general": 0.05}
        await log.append([record(f"r{n}", time=when, probabilities=likely) for n, when in enumerate(times)])
        await feedback.append(
            [Feedback(f"e{n}", f"r{n}", when, "score", float(n < 180), tenant="a") for n, when in enumerate(times)]
        )
        await log.aclose()
        await feedback.aclose()

    asyncio.run(write())


def test_the_alarm_moves_the_category_tells_the_webhook_once_and_respects_a_rollback(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(response, "PAUSE_SECONDS", 0.0)
    now, store = time.time(), ArtifactStore(settings.artifacts, "assignment")
    hook = type("One", (Hook,), {"got": [], "statuses": [500, 302]})
    with HTTPServer(("127.0.0.1", 0), hook) as server, ThreadPoolExecutor(1) as threads:
        threads.submit(server.serve_forever)
        alarms = {"webhook": f"http://127.0.0.1:{server.server_address[1]}/hook", "demote": True}
        registry = measured_registry(log={"url": URL}, alarms=alarms)
        declared = registry.model_dump(mode="json", exclude_none=True)
        declared["alarms"]["secret"] = "whsec_c2VjcmV0"
        settings.config.write_bytes(orjson.dumps(declared))
        version, assignment = planned(settings, registry)
        before = dict(zip(assignment.categories, assignment.choice, strict=True))
        assert before["code"] == "coder"
        write_log(settings, now=now)
        found = response.publish(settings, report(settings, now=now))
        standing = response.publish(settings, report(settings, now=now))
        server.shutdown()
    (alarm,) = [one for one in found["alarms"] if one["kind"] == "degradation"]
    assert alarm["command"] == "coe score --again coder --out probes, then coe plan probes"
    assert [drop["category"] for drop in alarm["drops"]] == ["code"]
    (later,) = [one for one in standing["alarms"] if one["kind"] == "degradation"]
    assert later["drops"] == alarm["drops"]  # a demoted expert has no new ratings, but the alarm stands
    move = store.last_move()
    assert move is not None
    assert (move.by, move.was) == ("alarm", version)
    assert move.why == f"demoted: code from coder to {assignment.runners_up[assignment.categories.index('code')][0]}"
    assert len(hook.got) == 3  # two failures and the accepted one; the second report has nothing new
    headers, body = hook.got[-1]
    assert "coder got worse since about" in orjson.loads(body)["text"]
    assert f"Until then {move.why};" in orjson.loads(body)["text"]
    signed = response.signature("whsec_c2VjcmV0", headers["webhook-id"], headers["webhook-timestamp"], body)
    assert headers["webhook-signature"] == signed
    assert "coder got worse since" in str(list(_status_rows(status_report(settings))))
    store.promote(version, by="rollback")
    response.publish(settings, report(settings, now=now))
    assert store.in_use() == version
    published = read_traffic_report(settings.artifacts / TRAFFIC_REPORT_FILE)
    assert published is not None
    assert published.notified == ("degradation coder code",)
