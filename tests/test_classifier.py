"""When an uncertain request uses the encoder: the routing gain of the experts that are eligible for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from coe.core import ExpertRule
from coe.mapping import Assignment, routing_gain
from coe.routing import classifier
from tests.decisions import chat_of
from tests.fakes import Gateway, WordRouter, gateway_of, registry_of

pytestmark = pytest.mark.anyio

EXPERTS = ("coder", "painter", "generalist")
ART = chat_of("ponder art")
WITHOUT_PAINTER = ExpertRule(experts=("coder", "generalist"))


def plan_of(quality: Sequence[Sequence[float]]) -> Assignment:
    declared = Assignment.declared(WordRouter.categories, EXPERTS, {"code": "coder", "art": "painter"}, "generalist")
    return replace(declared, quality=np.array(quality))


SPECIALIZED = plan_of([[0.9, 0.2, 0.5], [0.2, 0.9, 0.5], [0.5, 0.5, 0.6]])
ONE_BEST = plan_of([[0.6, 0.7, 0.6], [0.6, 0.7, 0.6], [0.6, 0.7, 0.6]])


async def stage_of(gateway: Gateway, rule: ExpertRule | None = None) -> str:
    composition = gateway.serving_state.serving.composition
    return (await composition.classifier.classify(ART, None, rule))[1].stage


async def test_the_routing_gain_is_computed_once_for_each_set_of_eligible_experts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    computed = list[list[int]]()

    def counted(assignment: Assignment, eligible: Sequence[int]) -> float:
        computed.append(list(eligible))
        return routing_gain(assignment, eligible)

    monkeypatch.setattr(classifier, "routing_gain", counted)
    async with gateway_of(assignment=SPECIALIZED) as gateway:
        stages = [await stage_of(gateway, rule) for rule in (None, WITHOUT_PAINTER, None, WITHOUT_PAINTER, None)]
    assert computed == [[0, 1, 2], [0, 2]]
    assert stages == ["predict"] * 5


@pytest.mark.parametrize(
    ("action", "stage"),
    [({"category": "code"}, "rule"), ({"expert": "coder"}, "short_circuit"), ({"odds": {"code": 2}}, "predict")],
)
async def test_a_rule_that_decides_alone_needs_no_encoder(action: dict[str, Any], stage: str) -> None:
    rules = [{"name": "r", "when": {"path": "*"}, **action}]
    async with gateway_of(registry_of(rules=rules), assignment=SPECIALIZED) as gateway:
        await gateway.chat("ponder art")
    assert [(record.rule, record.stage) for record in gateway.records] == [("r", stage)]


async def test_each_plan_has_its_own_routing_gain() -> None:
    async with gateway_of(assignment=SPECIALIZED) as before, gateway_of(assignment=ONE_BEST) as after:
        assert [await stage_of(one) for one in (before, after, before)] == ["predict", "short_circuit", "predict"]
