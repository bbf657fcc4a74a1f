"""`/v1/experts`: state and failures of experts, the check of a new entry, and the steps of adding one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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
        {"name": "careful", "cascade": [["coder", "painter"], "generalist"], "max_tokens": {"generalist": 400}},
        {"name": "panel", "vote": ["coder", "painter"]},
    ]
    async with gateway_of(registry_of(recipes=recipes)) as gateway:
        careful, panel = (await gateway.post("/v1/recipes", method="GET")).json["data"]
    assert (careful["id"], careful["steps"]) == ("careful", [["coder", "painter"], ["generalist"]])
    assert (careful["max_tokens"], panel["max_tokens"]) == ({"generalist": 400}, {})
    assert panel["steps"] == [["coder", "painter"]]
    async with gateway_of() as gateway:
        assert (await gateway.post("/v1/recipes", method="GET")).json["data"] == []


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
