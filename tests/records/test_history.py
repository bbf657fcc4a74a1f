"""`coe history` and `/v1/history`: buckets of the log, in SQLite and in Redis, and samples of busy ones."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import anyio.to_thread
import pytest
from typer.testing import CliRunner

from coe.cli import app
from coe.learning.monitoring.history import BUCKETS, MAX_NAMES, MAX_SAMPLE, OTHER, TrafficHistory
from coe.records.feedback import Feedback, FeedbackLog
from coe.records.record import RoutingLog
from tests.admin.samples import ScriptedJobs
from tests.fakes import gateway_of, registry_of
from tests.records.samples import record

pytestmark = pytest.mark.anyio
START = 1_700_000_000.0


def test_a_bucket_has_sums_quantiles_and_the_surest_rating_by_name() -> None:
    found = TrafficHistory(START, count=2, seconds=60)
    rows = [record(n, expert="coder" if n % 2 else "painter", first_token_ms=float(n), cost=0.5) for n in range(10)]
    failed = record(10, expert="coder", outcome="expert_timeout", first_token_ms=None, cost=None)
    for one in (*rows, failed, failed):  # a record that is read twice counts once
        found.add(one)
    events = [
        Feedback("1", "request-000001", START, "thumb", -1),
        Feedback("2", "request-000001", START, "score", 0.75),
        Feedback("3", "request-000003", START, "abandoned", None),
        Feedback("4", "unknown", START, "score", 0.0),
    ]
    found.rate([events])
    report = found.report()
    coder = report["buckets"][0]["expert"]["coder"]
    assert (coder["requests"], coder["failed"], coder["dollars"]) == (6, 1, 2.5)
    assert (coder["ratings"], coder["satisfaction"]) == (1, 0.75)
    assert (coder["first_token_p50_ms"], coder["first_token_p95_ms"]) == (5.0, 9.0)
    assert report["buckets"][0]["total"]["requests"] == 11
    assert report["buckets"][1]["total"] == {**dict.fromkeys(coder, 0), "satisfaction": None} | dict.fromkeys(
        ("first_token_p50_ms", "first_token_p95_ms")
    )


def test_a_record_of_a_sample_counts_for_those_that_were_not_read() -> None:
    found = TrafficHistory(START, count=2, seconds=100)
    found.add(record(1, cost=2.0, first_token_ms=50.0), 8.0)
    found.add(record(2, cost=None, first_token_ms=10.0))
    found.add(record(130, cost=1.0))
    report = found.report()
    total = report["buckets"][0]["total"]
    assert (total["requests"], total["dollars"], total["unpriced"], total["first_token_p50_ms"]) == (
        9.0,
        16.0,
        1.0,
        50.0,
    )
    assert [bucket["sampled"] for bucket in report["buckets"]] == [True, False]
    assert report["sampled"] == 1


def test_names_are_bounded() -> None:
    found = TrafficHistory(START, count=1, seconds=100)
    for n in range(50):
        found.add(record(n, key=f"k{n}"))
    report = found.report()
    assert len(report["names"]["key"]) == MAX_NAMES
    assert report["buckets"][0]["key"][OTHER]["requests"] == 50 - MAX_NAMES + 1


async def test_the_command_reads_a_bounded_sample_of_each_kind_of_log(
    log: RoutingLog, feedback: FeedbackLog, log_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time()
    count = 2 * MAX_SAMPLE
    busy = [record(n, time=now - 900 + n / 1e4, cost=0.01) for n in range(count)]  # a burst in the last half hour
    await log.append([record(9_001, time=now - 90_000), record(9_002, time=now - 3000, cost=2.0, key="a"), *busy])
    await feedback.append([Feedback("1", "request-009002", now, "score", 0.25)])
    config = tmp_path / "experts.yaml"
    config.write_text(
        json.dumps(registry_of().model_dump(mode="json", exclude_defaults=True) | {"log": {"url": log_url}})
    )
    monkeypatch.setenv("COE_HOME", str(tmp_path))
    arguments = ["history", "--since", "1d", "--config", str(config), "--json"]
    result = await anyio.to_thread.run_sync(lambda: CliRunner().invoke(app, arguments))
    report: dict[str, Any] = json.loads(result.stdout)
    assert (len(report["buckets"]), report["seconds"]) == BUCKETS["1d"]
    rows = [one for one in report["buckets"] if one["total"]["requests"]]
    assert rows[0]["total"]["satisfaction"] == 0.25
    assert sum(one["sampled"] for one in report["buckets"]) == report["sampled"] > 0
    assert sum(one["total"]["requests"] for one in rows) == pytest.approx(count + 1, rel=0.02)
    if not log_url.startswith("redis"):  # whose entries lie by the time of the append, all in one part here
        assert [one["total"]["dollars"] for one in rows] == pytest.approx([2.0, 0.01 * count])


async def test_the_endpoint_runs_one_job_for_each_period() -> None:
    jobs = ScriptedJobs({"buckets": []})
    async with gateway_of(jobs=jobs) as gateway:
        for query, status in (("", 200), ("since=1d", 200), ("since=2d", 400)):
            assert (await gateway.post("/v1/history", method="GET", query=query)).status == status
    assert jobs.asked == [("history", "--since", "1d")]
