"""`coe log export` and `import`: a log goes to a file and into another log, nothing lost, nothing twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from coe.learning.log_frame import open_logs
from coe.records.feedback import Feedback
from coe.records.record import RoutingRecord
from tests.cli.logged_service import LoggedService
from tests.learning.samples import record

TIME = 1_000_000_000_000.0


def everything(service: LoggedService) -> tuple[list[RoutingRecord], list[Feedback]]:
    with open_logs(service.url, base=service.settings.home) as logs:
        records = [one for page in logs.records(until=TIME) for one in page]
        return records, [one for page in logs.pages() for one in page.events]


def plain(events: list[Feedback]) -> list[tuple[Any, ...]]:
    return sorted((one.request_id, one.kind, one.value, one.tenant, one.time) for one in events)


@pytest.fixture
def file(service: LoggedService) -> Path:
    return service.config.with_name("log.jsonl")


def test_a_log_is_copied_unchanged_from_redis_to_a_file_and_into_sqlite(service: LoggedService, file: Path) -> None:
    service.serve(40)
    now = service.began
    odd = record(
        "req_odd",
        time=now,
        prompt="né 日本語 🦜",
        utility=(0.5, float("-inf")),
        exploration=(0.05, 0.1),
        first_token_ms=None,
        tenant=None,
        cost=0.25,
    )
    feedback = [
        Feedback("f1", "req_odd", now + 1, "thumb", -1),
        Feedback("f2", "req_odd", now + 2, "category", "cooking"),
        Feedback("f3", "req_odd", now + 2, "preferred", "chef"),  # a thumb is surer
    ]
    service.append([odd, record("req_bare", time=now, candidates=(), probabilities={}, tenant=None)], feedback)
    assert "42 records" in service.run("log", "export", file)
    records, events = everything(service)

    service.url = "sqlite:///other.sqlite"
    service.declare()
    for _ in range(2):  # again changes nothing
        assert "42 records" in service.run("log", "import", file)
    found, exported_events = everything(service)
    assert sorted(found, key=lambda one: one.request_id) == sorted(records, key=lambda one: one.request_id)
    assert plain(exported_events)[:40] == plain([one for one in events if one.request_id != "req_odd"])
    assert [one[:3] for one in plain(exported_events)[40:]] == [
        ("req_odd", "category", "cooking"),
        ("req_odd", "thumb", -1),
    ]
    assert service.retrain()["report"]["requests"] == 40


def test_an_export_selects_by_time_and_category_and_too_old_records_are_not_imported(
    service: LoggedService, file: Path
) -> None:
    service.append(
        [record("req_old", time=service.began - 7_200), record("req_new", time=service.began, category="cooking")]
    )
    assert "1 records" in service.run("log", "export", file, "--category", "cooking")
    assert "1 records" in service.run("log", "export", file, "--until", "2h")
    service.declare(log={"url": "sqlite:///other.sqlite", "keep_days": 0.05})
    output = service.run("log", "import", file)
    assert "0 records" in output
    assert "1 records are older than log.keep_days" in output
