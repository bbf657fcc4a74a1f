"""`/v1/experts`: state and failures of experts, the check of a new entry, and the steps of adding one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest

from coe.errors import ExpertTimeout, ExpertUnavailable, StoreError
from coe.settings import Settings
from gateway.endpoints.admin.experts import FAILURES
from tests.fakes import Gateway, gateway_of, registry_of

pytestmark = pytest.mark.anyio
DECLARED = """\
version: 1
categories:
  - name: code
    description: programs
  - {name: general, description: the rest}
experts:
  - name: coder
    model: m
    runtime: external
    base_url: http://127.0.0.1:9/v1
    api_key: ${SECRET_KEY}
assignment: {general: coder}
"""
ENTRY = "- name: writer\n  model: m\n  runtime: external\n  base_url: https://writer.test/v1\n"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    config = tmp_path / "experts.yaml"
    config.write_text(DECLARED)
    return Settings.read({"SECRET_KEY": "hidden-value"}, config=config)


async def listed(gateway: Gateway) -> dict[str, Any]:
    answer = await gateway.post("/v1/experts", method="GET")
    return {expert["id"]: expert for expert in answer.json["data"]}


async def test_recipes_are_listed_with_their_members() -> None:
    recipes: list[dict[str, Any]] = [
        {"name": "careful", "cascade": [["coder", "painter"], "generalist"]},
        {"name": "panel", "vote": ["coder", "painter"]},
    ]
    async with gateway_of(registry_of(recipes=recipes)) as gateway:
        careful, panel = (await gateway.post("/v1/recipes", method="GET")).json["data"]
    assert (careful["id"], careful["steps"]) == ("careful", [["coder", "painter"], ["generalist"]])
    assert panel["steps"] == [["coder", "painter"]]
    async with gateway_of() as gateway:
        assert (await gateway.post("/v1/recipes", method="GET")).json["data"] == []


async def check(gateway: Gateway, entry: str) -> Any:
    answer = await gateway.post("/v1/experts/check", orjson.dumps({"entry": entry}))
    assert answer.status == 200
    return answer.json


async def steps(gateway: Gateway, name: str) -> Any:
    return (await gateway.post(f"/v1/experts/{name}/steps", method="GET")).json


async def test_each_expert_has_its_numbers_and_assigned_categories() -> None:
    async with gateway_of(painter=ExpertUnavailable("gone", expert="painter")) as gateway:
        await gateway.chat("code")
        await gateway.chat("art")
        await gateway.chat("art", model="painter")
        found = await listed(gateway)
    assert list(found) == ["coder", "painter", "generalist"]
    assert (found["coder"]["requests"], found["coder"]["failed"]) == (1, 0)
    assert (found["painter"]["requests"], found["painter"]["failed"], found["painter"]["fallbacks"]) == (1, 1, 1)
    assert [row["category"] for row in found["coder"]["assigned_categories"]] == ["code"]
    assert found["coder"]["system_prompt"] is False
    assert "api_key" not in found["coder"]


async def test_failures_are_the_newest_of_this_expert_with_their_ids_and_no_text() -> None:
    async with gateway_of(coder=ExpertTimeout("slow", expert="coder")) as gateway:
        for number in range(12):
            await gateway.chat(f"code number {number}", model="coder")
        await gateway.chat("art", model="painter")
        answer = await gateway.post("/v1/experts/coder/failures", method="GET")
        data = answer.json["data"]
        assert len(data) == 10
        assert [one["request_id"] for one in data] == [record.request_id for record in gateway.records[11:1:-1]]
        assert {one["outcome"] for one in data} == {"expert_timeout"}
        assert b"number" not in answer.body
        assert (await gateway.post("/v1/experts/painter/failures", method="GET")).json["data"] == []
        missing = await gateway.post("/v1/experts/nobody/failures", method="GET")
        assert (missing.status, missing.error["code"]) == (404, "model_not_found")


async def test_failures_report_an_unreadable_log() -> None:
    async with gateway_of() as gateway:
        gateway.log.fails = StoreError("no disk")
        answer = await gateway.post("/v1/experts/coder/failures", method="GET")
        assert (answer.status, answer.error["code"]) == (503, "log_unavailable")


def test_every_error_of_an_expert_counts_as_a_failure() -> None:
    assert {"expert_timeout", "expert_busy", "expert_asleep", "deadline_exceeded", "internal_error"} <= set(FAILURES)
    assert len(FAILURES) == len(set(FAILURES))


async def test_a_valid_entry_is_accepted_and_nothing_is_written(settings: Settings) -> None:
    async with gateway_of(settings=settings) as gateway:
        before = settings.config.read_bytes()
        for entry in (ENTRY, ENTRY.replace("- name", "name").replace("\n  ", "\n")):
            assert await check(gateway, entry) == {
                "object": "expert.check",
                "ok": True,
                "problems": [],
                "unset": [],
                "name": "writer",
            }
        assert settings.config.read_bytes() == before


@pytest.mark.parametrize(
    ("change", "line", "what"),
    [
        (("runtime: external", "runtime: extern"), 3, "should be 'transformers'"),
        (("model: m", "modle: m"), 2, "unknown key 'modle'; did you mean 'model'?"),
        (("name: writer", "name: coder"), 1, "already used on line 7"),
        (("https://writer.test/v1", "writer.test"), 4, "should match pattern"),
        (("  base_url: https://writer.test/v1\n", ""), 1, "needs a base_url"),
        (("name: writer", "name: auto"), 1, "choose another name"),
        (("model: m", "model: [m"), 3, "expected"),
        (("model: m", "model: &a m\n  adapter: *a"), 3, "aliases"),
        (("model: m", f"parameters: {'[' * 40}{']' * 40}"), 2, "nested deeper than"),
        (("model: m", f"context_length: {'9' * 9000}"), 1, "not YAML"),
        ((ENTRY, ENTRY + ENTRY), 1, "expected one expert"),
        ((ENTRY, "[]"), 1, "expected one expert"),
        ((ENTRY, "<script>alert(1)</script>"), 1, "expected one expert"),
    ],
)
async def test_a_wrong_entry_is_reported_with_its_line(
    settings: Settings, change: tuple[str, str], line: int, what: str
) -> None:
    async with gateway_of(settings=settings) as gateway:
        found = await check(gateway, ENTRY.replace(*change))
    assert found["ok"] is False
    problem = next(one for one in found["problems"] if what in one["message"])
    assert (problem["where"], problem["line"]) == ("entry", line)


async def test_problems_of_the_file_itself_are_reported_as_its_own(settings: Settings) -> None:
    settings.config.write_text(DECLARED.replace("general: coder", "general: codr"))
    async with gateway_of(settings=settings) as gateway:
        found = await check(gateway, ENTRY)
    assert [(one["where"], one["line"]) for one in found["problems"]] == [("experts.yaml", 12)]


async def test_an_entry_cannot_read_the_environment(settings: Settings) -> None:
    async with gateway_of(settings=settings) as gateway:
        for line in ("stand_in: ${SECRET_KEY}", "device: ${SECRET_KEY}", "api_key: ${SECRET_KEY}", "x: ${SECRET_KEY}"):
            answer = await gateway.post("/v1/experts/check", orjson.dumps({"entry": f"{ENTRY}  {line}\n"}))
            assert b"hidden-value" not in answer.body
        found = await check(gateway, ENTRY + "  api_key: ${WRITER_KEY}\n")
    assert (found["ok"], found["unset"]) == (True, ["WRITER_KEY"])


async def test_too_large_an_entry_is_refused(settings: Settings) -> None:
    async with gateway_of(settings=settings) as gateway:
        long = await gateway.post("/v1/experts/check", orjson.dumps({"entry": "x" * 16_001}))
        assert (long.status, long.error["param"]) == (400, "entry")
        huge = await gateway.post("/v1/experts/check", orjson.dumps({"entry": "x" * 100_000}))
        assert huge.status == 413


async def test_the_steps_show_the_progress_of_adding_an_expert(settings: Settings) -> None:
    async with gateway_of(settings=settings) as gateway:
        unknown = await steps(gateway, "writer")
        assert (unknown["declared"], unknown["served"], unknown["reachable"]) == (False, False, None)
        settings.config.write_text(DECLARED.replace("assignment:", f"{indented(ENTRY)}assignment:"))
        assert (await steps(gateway, "writer"))["declared"] is True
        coder = await steps(gateway, "coder")
        assert (coder["served"], coder["reachable"], coder["requests"]) == (True, None, 0)
        assert coder["assigned_categories"] == ["code"]
        await gateway.chat("code")
        assert (await steps(gateway, "coder"))["reachable"] is True
        settings.config.write_text("version: 2\n")
        broken = await steps(gateway, "coder")
        assert broken["declared"] is False
        assert broken["problems"][0]["where"] == "experts.yaml"


def indented(entry: str) -> str:
    return "".join(f"  {line}\n" for line in entry.splitlines())
