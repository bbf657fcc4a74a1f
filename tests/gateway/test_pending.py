"""A request is load of its expert from its decision until it is sent or ends; it is counted once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import orjson
import pytest

from coe.core import Call, Chat, RequestOptions
from coe.errors import DeadlineExceeded, ExpertRejected, ExpertUnavailable, RetrievalError
from coe.experts.replicas import Replica, ReplicatedExpert
from coe.registry import Registry
from coe.routing.attempts import Attempts
from coe.routing.composition import Composition
from gateway.request.body import ClientLeftError
from tests.decisions import chat_of
from tests.fakes import Gateway, ScriptedExpert, ScriptedReply, gateway_of, registry_of
from tests.gateway.ready import another_ready
from tests.recipes.members import answer, plan_with
from tests.retrieval.gates import ScriptedRetrieval, gate_of, passage

pytestmark = pytest.mark.anyio

NAMES = ("coder", "painter", "generalist")
RECIPES = [{"name": "panel", "vote": ["coder", "painter"]}]
OPTIONS = RequestOptions()


class CountingServer(ScriptedExpert):
    """Notes the pending requests and the requests in flight of its expert whenever it gets a call."""

    expert: ReplicatedExpert

    def __init__(self, name: str, script: Any) -> None:
        super().__init__(name, script)
        self.counted: list[tuple[int, int]] = []

    async def stream(self, call: Call) -> ScriptedReply:
        self.counted.append((self.expert.pending, self.expert.replicas[0].in_flight))
        return await super().stream(call)


def limited(**changes: Any) -> Registry:
    """A registry whose experts take one request at a time; another one may answer whatever its quality."""
    experts: list[dict[str, Any]] = [
        {**one.model_dump(exclude_none=True, exclude_unset=True), "concurrent_requests": 1}
        for one in registry_of().experts
    ]
    policy = {"max_quality_loss": 1.0, **changes.pop("policy", {})}
    return registry_of(**{"experts": experts, "recipes": RECIPES, "policy": policy} | changes)


def experts_of(registry: Registry, **scripts: Any) -> dict[str, ReplicatedExpert]:
    """The declared experts, each with one scripted server."""
    experts = {}
    for spec in registry.experts:
        server = CountingServer(spec.name, scripts.get(spec.name, answer("7")))
        server.expert = experts[spec.name] = ReplicatedExpert(spec, replicas=[Replica(server)])
    return experts


@asynccontextmanager
async def gateway_over(
    experts: dict[str, ReplicatedExpert], registry: Registry, **more: Any
) -> AsyncIterator[tuple[Gateway, Composition]]:
    """A gateway over the experts, none of which has a pending request or one in flight afterwards."""
    async with gateway_of(registry, real_experts=experts, **more) as gateway:
        yield gateway, gateway.serving_state.serving.composition
    assert [(one.pending, one.replicas[0].in_flight) for one in experts.values()] == len(experts) * [(0, 0)]


def counted(experts: dict[str, ReplicatedExpert], name: str = "coder") -> list[tuple[int, int]]:
    server = experts[name].replicas[0].expert
    assert isinstance(server, CountingServer)
    return server.counted


def pending(experts: dict[str, ReplicatedExpert]) -> list[int]:
    return [experts[name].pending for name in NAMES]


@asynccontextmanager
async def decided(gateway: Gateway, expert: ReplicatedExpert) -> AsyncIterator[None]:
    """A request that is decided for the expert, and has yielded before its call; it ends with the context."""
    with another_ready(gateway):
        task = asyncio.ensure_future(gateway.chat("code"))
        async with asyncio.timeout(60):
            while not expert.pending:
                await asyncio.sleep(0)
        yield
        await task


def decide(composition: Composition, attempts: Attempts | None, chat: Chat | None = None) -> tuple[str, str]:
    chat = chat or chat_of("code")
    prediction = composition.router.predict_fast("code", force=True)
    assert prediction is not None
    decision = composition.assign(chat, prediction, OPTIONS, attempts=attempts)
    return decision.expert, decision.reason


async def test_a_decision_counts_as_load_until_it_ends() -> None:
    registry = limited()
    experts = experts_of(registry)
    async with gateway_over(experts, registry) as (_, composition):
        first, second = Attempts(), Attempts()
        assert decide(composition, first) == ("coder", "routed")
        assert (pending(experts), experts["coder"].health.load) == ([1, 0, 0], 1.0)
        assert decide(composition, second) == ("generalist", "spilled")
        assert pending(experts) == [1, 0, 1]
        second.end_pending()
        first.end_pending()
        first.end_pending()
        assert pending(experts) == [0, 0, 0]


async def test_a_decision_of_which_no_call_follows_counts_nothing() -> None:
    registry = limited()
    experts = experts_of(registry)
    async with gateway_over(experts, registry) as (gateway, composition):
        assert decide(composition, None) == ("coder", "routed")
        body = orjson.dumps({"model": "auto", "messages": [{"role": "user", "content": "code"}]})
        assert (await gateway.post("/v1/route", body)).json["expert"] == "coder"
        assert (pending(experts), counted(experts)) == ([0, 0, 0], [])


async def test_a_request_that_is_decided_again_does_not_spill_itself() -> None:
    registry = limited()
    experts = experts_of(registry)
    async with gateway_over(experts, registry) as (_, composition):
        attempts = Attempts()
        for _ in range(3):
            assert decide(composition, attempts) == ("coder", "routed")
            assert pending(experts) == [1, 0, 0]
        attempts.end_pending()


@pytest.mark.parametrize(("model", "expected"), [("painter", [0, 1, 0]), ("panel", [1, 1, 0])])
async def test_recipes_count_for_the_members_of_their_first_step(model: str, expected: list[int]) -> None:
    registry = limited()
    experts = experts_of(registry)
    async with gateway_over(experts, registry) as (gateway, composition):
        attempts = Attempts()
        name, reason = decide(composition, attempts, replace(chat_of("code"), model=model))
        assert (reason, pending(experts)) == ("pinned", expected)
        assert name in composition.recipes or name == model
        attempts.end_pending()
        assert (await gateway.chat("code", model=model)).status == 200
    assert [counted(experts, one)[0] for one, count in zip(NAMES, expected, strict=True) if count] == sum(expected) * [
        (0, 1)
    ]


async def test_an_arm_of_a_recipe_has_the_load_of_the_pending_calls_of_its_members() -> None:
    registry = limited()
    experts = experts_of(registry)
    plan = plan_with("panel", registry, quality=1.001)
    async with gateway_over(experts, registry, assignment=plan) as (_, composition):
        first, second, third = (Attempts() for _ in range(3))
        assert decide(composition, first) == ("panel", "routed")
        assert pending(experts) == [1, 1, 0]
        assert decide(composition, second) == ("generalist", "spilled")
        assert decide(composition, third) == ("panel", "routed")  # none is free
        for one in (first, second, third):
            one.end_pending()


@pytest.mark.parametrize("stream", [False, True])
async def test_a_sent_request_is_in_flight_and_not_pending(stream: bool) -> None:
    registry = limited()
    experts = experts_of(registry)
    async with gateway_over(experts, registry) as (gateway, _):
        response = await gateway.chat("code", stream=stream)
        assert (response.status, gateway.records[0].expert) == (200, "coder")
    assert counted(experts) == [(0, 1)]


@pytest.mark.parametrize(
    ("error", "status", "answers"),
    [
        (ExpertUnavailable("down", expert="coder"), 200, "generalist"),
        (ExpertRejected("no", expert="coder", status=400), 400, "coder"),
        (RuntimeError("a defect"), 500, "coder"),
    ],
)
async def test_a_failed_call_ends_the_count(error: Exception, status: int, answers: str) -> None:
    registry = limited()
    experts = experts_of(registry, coder=error)
    async with gateway_over(experts, registry) as (gateway, _):
        response = await gateway.chat("code")
        assert (response.status, gateway.records[0].expert) == (status, answers)
    assert counted(experts) == [(0, 1)]


async def test_an_expert_that_is_down_before_the_call_counts_until_its_fallback_is_called() -> None:
    registry = limited()
    experts = experts_of(registry)
    async with gateway_over(experts, registry) as (gateway, _):
        async with decided(gateway, experts["coder"]):
            experts["coder"].replicas[0].breaker.throttle(60.0)
        assert gateway.records[0].expert == "generalist"
    assert (counted(experts), counted(experts, "generalist")) == ([], [(0, 1)])


@pytest.mark.parametrize("reason", [ClientLeftError(), DeadlineExceeded("too late")])
async def test_a_request_that_is_cancelled_before_its_call_ends_the_count(reason: Any) -> None:
    registry = limited()
    experts = experts_of(registry)
    async with gateway_over(experts, registry) as (gateway, _):
        async with decided(gateway, experts["coder"]):
            (active,) = gateway.serving_state.admission.active
            active.cancel(reason)
        assert gateway.records[0].expert == "coder"
    assert counted(experts) == []


@pytest.mark.parametrize("how", ["nothing", "away", "cancelled"])
async def test_retrieval_that_fails_or_decides_again_leaves_one_count(how: str) -> None:
    scripted = ScriptedRetrieval(passage("A tower."), gate=gate_of({("code", "coder"): 6.0}), timeout=60.0)
    scripted.retriever.waits = asyncio.Event()
    scripted.retriever.shared = [] if how == "nothing" else scripted.retriever.shared
    scripted.retriever.fails = RetrievalError("the store is away") if how == "away" else None
    registry = limited()
    experts = experts_of(registry)
    async with gateway_over(experts, registry, retrieval=scripted.retrieval) as (gateway, _):
        task = asyncio.ensure_future(gateway.chat("code it"))
        async with asyncio.timeout(60):
            while not scripted.retriever.searches:
                await asyncio.sleep(0.001)
        assert pending(experts) == [1, 0, 0]
        if how == "cancelled":
            (active,) = gateway.serving_state.admission.active
            active.cancel(ClientLeftError())
        scripted.retriever.waits.set()
        await task
        (record,) = gateway.records
        assert (record.expert, record.reason) == ("coder", "routed")
    assert counted(experts) == ([] if how == "cancelled" else [(0, 1)])


async def test_an_answer_from_the_cache_counts_nothing() -> None:
    registry = limited(cache={})
    experts = experts_of(registry)
    async with gateway_over(experts, registry) as (gateway, _):
        first, second = await gateway.chat("code", temperature=0), await gateway.chat("code", temperature=0)
    assert [one.headers["x-coe-cache"] for one in (first, second)] == ["miss", "hit"]
    assert counted(experts) == [(0, 1)]


async def test_experts_without_a_limit_count_no_pending_requests() -> None:
    registry = registry_of()
    experts = experts_of(registry)
    async with gateway_over(experts, registry) as (_, composition):
        attempts = Attempts()
        assert decide(composition, attempts) == ("coder", "routed")
        assert attempts.pending is None
