"""`coe log export`: the records of a log with their feedback in a file."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest

from coe.records.feedback import Feedback
from tests.cli.logged_service import LoggedService
from tests.learning.samples import record


@pytest.fixture
def file(service: LoggedService) -> Path:
    return service.config.with_name("log.jsonl")


def test_an_export_has_every_record_with_the_feedback_that_learning_uses(service: LoggedService, file: Path) -> None:
    service.serve(40)
    now = service.began
    feedback = [
        Feedback("f1", "req_odd", now + 1, "thumb", -1),
        Feedback("f2", "req_odd", now + 2, "category", "cooking"),
        Feedback("f3", "req_odd", now + 2, "preferred", "chef"),  # a thumb is surer
    ]
    service.append([record("req_odd", time=now, tenant=None, prompt="né 🦜", utility=(0.5, float("-inf")))], feedback)
    assert "41 records" in service.run("log", "export", file)
    rows = {one["request_id"]: one for one in map(orjson.loads, file.read_bytes().splitlines())}
    odd = rows["req_odd"]
    assert (len(rows), odd["prompt"], odd["utility"]) == (41, "né 🦜", [0.5, None])
    assert (odd["feedback_kind"], odd["feedback_value"], odd["feedback_category"]) == ("thumb", -1.0, "cooking")


def test_an_export_selects_by_time_and_category(service: LoggedService, file: Path) -> None:
    service.append(
        [record("req_old", time=service.began - 7_200), record("req_new", time=service.began, category="cooking")]
    )
    assert "1 records" in service.run("log", "export", file, "--category", "cooking")
    assert "1 records" in service.run("log", "export", file, "--until", "2h")
