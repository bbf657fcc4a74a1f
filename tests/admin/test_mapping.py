"""`/v1/map`: the assignment in use with the scores behind it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from coe.artifacts.manifest import ASSIGNMENT
from coe.registry import Registry
from coe.settings import Settings
from tests.admin.samples import CATEGORIES, measured_registry, planned, settings_in
from tests.fakes import Gateway, gateway_of

pytestmark = pytest.mark.anyio


@pytest.fixture
def registry() -> Registry:
    return measured_registry(budget={"mean_active_b": 12})


@pytest.fixture
def settings(tmp_path: Path, registry: Registry) -> Settings:
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


async def test_a_declared_assignment_has_no_scores() -> None:
    async with gateway_of() as gateway:
        found = await read_map(gateway)
    assert (found["version"], found["promotion"], found["measured"]) == (None, None, None)
    assert [(row["category"], row["expert"]) for row in found["assignment"]] == [
        ("code", "coder"),
        ("art", "painter"),
        ("general", "generalist"),
    ]


async def test_a_plan_is_returned_with_the_scores_behind_it(gateway: Gateway) -> None:
    found = await read_map(gateway)
    assert found["promotion"]["by"] == "plan"
    assert found["categories"] == list(CATEGORIES)
    measured = found["measured"]
    assert measured["source"] == "132 prompts of probes"
    assert [row[0] for row in measured["count"]] == [80, 40, 12]
    code, art, general = found["quality_planned"]
    assert general[:2] == [None, None]  # pinned to the third
    assert code == pytest.approx(measured["estimate"][0])
    assert min(measured["error"][0]) > 0
    assert max(range(3), key=art.__getitem__) == 1
    assert measured["value_of_expert"]["generalist"] is None
    assert found["prices"]["painter"] > found["prices"]["generalist"] >= 0
    painter = found["experts"].index("painter")
    assert set(measured["uses_by_category"]) == {"active_b", "cost", "latency_ms"}
    assert [row[painter] for row in measured["uses_by_category"]["active_b"]] == [30, 30, 30]
    assert (measured["uses"]["active_b"][painter], measured["uses"]["latency_ms"][painter]) == (30, None)
