"""`/v1/map`: the assignment in use with the scores behind it, and plans under other budgets."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from coe.artifacts.kinds import ASSIGNMENT
from coe.registry import Registry
from coe.settings import Settings
from gateway.endpoints.admin import mapping
from tests.admin.samples import CATEGORIES, measured_registry, planned, settings_in
from tests.fakes import Gateway, Response, gateway_of

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A long time limit, so that a plan is solved in time on a busy machine."""
    monkeypatch.setattr(mapping, "SOLVE_SECONDS", 240.0)


@pytest.fixture
def registry() -> Registry:
    return measured_registry(budget={"mean_active_b": 12})


@pytest.fixture
def settings(tmp_path: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent.parent.parent))
    return settings_in(tmp_path, registry)


@pytest.fixture
async def gateway(settings: Settings, registry: Registry) -> AsyncIterator[Gateway]:
    version, assignment = planned(settings, registry)
    async with gateway_of(
        registry, settings=settings, versions={ASSIGNMENT: version}, assignment=assignment
    ) as gateway:
        yield gateway


async def read_map(gateway: Gateway) -> dict[str, Any]:
    answer = await gateway.post("/v1/map", method="GET")
    assert answer.status == 200, answer.body
    found: dict[str, Any] = answer.json
    return found


async def solve(gateway: Gateway, **budget: Any) -> Response:
    return await gateway.post("/v1/map/solve", orjson.dumps(budget))


async def test_a_declared_assignment_has_no_scores() -> None:
    async with gateway_of() as gateway:
        found = await read_map(gateway)
        refused = await solve(gateway, max_share=0.5)
    assert (found["version"], found["promotion"], found["measured"]) == (None, None, None)
    assert [(row["category"], row["expert"]) for row in found["assignment"]] == [
        ("code", "coder"),
        ("art", "painter"),
        ("general", "generalist"),
    ]
    assert (refused.status, refused.error["code"]) == (409, "nothing_measured")
    assert "coe score" in refused.error["message"]


async def test_a_plan_is_returned_with_the_scores_behind_it(gateway: Gateway) -> None:
    found = await read_map(gateway)
    assert found["promotion"]["by"] == "plan"
    assert found["categories"] == list(CATEGORIES)
    measured = found["measured"]
    assert measured["source"] == "132 prompts of probes"
    assert [row[0] for row in measured["count"]] == [80, 40, 12]
    code, art, general = measured["quality"]
    assert general[:2] == [None, None]  # pinned to the third
    for estimate, error, bound in zip(measured["estimate"][0], measured["error"][0], code, strict=True):
        assert bound == pytest.approx(max(estimate - error, 0))
    assert max(range(3), key=art.__getitem__) == 1
    assert measured["budget"] == {"mean_active_b": 12}
    assert measured["value_of_expert"]["generalist"] is None
    best = zip(measured["weights"], measured["quality"], found["assignment"], strict=True)
    expected = sum(weight * row[found["experts"].index(one["expert"])] for weight, row, one in best)
    assert measured["planned"]["quality"] == pytest.approx(expected)
    assert measured["planned"]["used"]["mean_active_b"] <= 12
    assert found["prices"]["painter"] > found["prices"]["generalist"] >= 0
    prices = zip(measured["weights"], found["price_by_category"], strict=True)
    painter = found["experts"].index("painter")
    assert sum(weight * row[painter] for weight, row in prices) == pytest.approx(found["prices"]["painter"])
    assert set(measured["uses_by_category"]) == {"active_b", "cost", "latency_ms"}
    assert [row[painter] for row in measured["uses_by_category"]["active_b"]] == [30, 30, 30]
    assert (measured["uses"]["active_b"][painter], measured["uses"]["latency_ms"][painter]) == (30, None)


async def test_other_budgets_are_solved_by_a_process_beside_the_gateway(gateway: Gateway) -> None:
    frugal = await solve(gateway, mean_active_b=2.1)
    assert frugal.status == 200, frugal.body
    assert {row["expert"] for row in frugal.json["assignment"]} == {"generalist"}
    impossible = await solve(gateway, mean_active_b=1)
    assert (impossible.status, impossible.error["code"]) == (400, "budget_impossible")
    assert "the smallest feasible limit is 2" in impossible.error["message"]


@pytest.mark.parametrize(
    "body", [b'{"speed": 1}', b'{"max_share": 0}', b'{"max_share": 1.1}', b'{"mean_cost": 1e999}', b"[", b"[]"]
)
async def test_a_wrong_budget_is_refused(gateway: Gateway, body: bytes) -> None:
    assert (await gateway.post("/v1/map/solve", body)).status == 400
