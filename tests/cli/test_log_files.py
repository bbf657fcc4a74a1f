"""`coe log export` writes each record with its feedback, and selects by time and category."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest

from coe.records.record import RECORD, Feedback
from tests.cli.logged_service import LoggedService
from tests.learning.samples import record


@pytest.fixture
def file(service: LoggedService) -> Path:
    return service.config.with_name("log.jsonl")


def test_an_export_has_every_record_with_its_surest_rating_and_its_correction(
    service: LoggedService, file: Path
) -> None:
    service.serve(40)
    now = service.began
    odd = record("req_odd", time=now, prompt="né 日本語 🦜", utility=(0.5, float("-inf")), propensities=(0.95, 0.05))
    bare = record("req_bare", time=now, candidates=(), probabilities={}, tenant=None)
    feedback = [
        Feedback("f1", "req_odd", now + 1, "thumb", -1, tenant="a"),
        Feedback("f2", "req_odd", now + 2, "category", "cooking", tenant="a"),
        Feedback("f3", "req_odd", now + 2, "preferred", "chef", tenant="a"),  # a thumb is surer
    ]
    service.append([odd, bare], feedback)
    assert "42 records" in service.run("log", "export", file)
    lines = {RECORD.decode(line).request_id: line for line in file.read_bytes().splitlines()}
    assert len(lines) == 42
    assert [RECORD.decode(lines[one.request_id]) for one in (odd, bare)] == [odd, bare]
    found = orjson.loads(lines["req_odd"])
    assert (found["feedback_kind"], found["feedback_value"], found["feedback_category"]) == ("thumb", -1, "cooking")
    assert found["feedback_preferred"] is None
    assert orjson.loads(lines["req_bare"])["feedback_kind"] is None


def test_an_export_selects_by_time_and_category(service: LoggedService, file: Path) -> None:
    service.append(
        [record("req_old", time=service.began - 7_200), record("req_new", time=service.began, category="cooking")]
    )
    assert "1 records" in service.run("log", "export", file, "--category", "cooking")
    assert "1 records" in service.run("log", "export", file, "--until", "2h")
