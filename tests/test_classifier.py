"""When a request uses the encoder: the routing gain and the residual of the experts that are eligible for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from coe.core import Chat, ExpertRule, RequestOptions
from coe.planning.assignment import Assignment, routing_gain
from coe.planning.residual import Projection, Residual
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


async def stage_of(gateway: Gateway, rule: ExpertRule | None = None, chat: Chat = ART) -> str:
    composition = gateway.services.snapshot.composition
    return (await composition.classifier.classify(chat, rule))[1].stage


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


def residual_of(left_out: Sequence[float], label: int) -> Residual:
    """The residual of two measured prompts of a category, whose features are like those of no text and of `art`."""
    scores = np.array([[0.5, 0.5, 0.5], [0.0, 0.0, 1.0]])
    vectors = np.array([[-1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    return Residual(
        categories=WordRouter.categories,
        experts=EXPERTS,
        encoder="e",
        prompts=(("p0", "none"), ("p1", "art")),
        labels=np.array([label, label]),
        posteriors=np.eye(3)[[label, label]],
        scores=scores,
        errors=scores - scores.mean(axis=1, keepdims=True),
        left_out=np.array([[0.0, 0.0, 0.0], left_out]),
        projection=Projection(np.zeros((1, 3)), np.eye(3)),
        vectors=vectors,
    )


SURE = chat_of("art")
GAINS = replace(ONE_BEST, residual=residual_of([0.0, 0.0, 0.2], label=1))


async def test_a_sure_text_is_encoded_where_the_residual_may_change_the_choice_and_others_are_not() -> None:
    async with gateway_of(assignment=GAINS) as gateway:
        assert await stage_of(gateway, chat=SURE) == "predict"
        assert await stage_of(gateway, chat=chat_of("code")) == "predict_fast"  # the residual is of `art`
        assert await stage_of(gateway, ExpertRule(experts=("coder", "painter")), chat=SURE) == "predict_fast"
        assert await stage_of(gateway, chat=replace(SURE, model="coder")) == "predict_fast"
    for plan in (ONE_BEST, replace(ONE_BEST, residual=residual_of([0.0, 0.0, 0.05], label=1))):
        async with gateway_of(assignment=plan) as gateway:
            assert await stage_of(gateway, chat=SURE) == "predict_fast"


async def test_the_residual_changes_the_choice_of_an_encoded_text_alone() -> None:
    async with gateway_of(assignment=GAINS) as gateway:
        composition = gateway.services.snapshot.composition
        _, prediction = await composition.classifier.classify(SURE)
        assert composition.decide(SURE, prediction, RequestOptions()).expert == "generalist"
        without = replace(prediction, residual=None)
        assert composition.decide(SURE, without, RequestOptions()).expert == "painter"
        explain = {"content-type": "application/json", "x-coe-explain": "1"}
        bodies = (
            b'{"model": "%s", "messages": [{"role": "user", "content": "art"}]}' % name
            for name in (b"auto", b"painter")
        )
        routed, pinned = [(await gateway.post("/v1/route", body, headers=explain)).json for body in bodies]
    (nearest, _) = routed["measured"]
    assert (nearest["prompt_id"], nearest["text"], nearest["category"]) == ("p1", "art", "art")
    assert nearest["scores"] == {"coder": 0.0, "painter": 0.0, "generalist": 1.0}
    assert pinned["measured"] == []
