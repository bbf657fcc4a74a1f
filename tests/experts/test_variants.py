"""Variants of one declared expert: their declaration, and requests to them in every API."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from aiohttp import web
from typer.testing import CliRunner

from coe.cli import app
from coe.core import Api, Call, Health, Prediction
from coe.errors import ConfigError, ExpertUnavailable
from coe.experts import build_experts
from coe.experts.http.client import Client
from coe.experts.litellm.translation import litellm_arguments
from coe.mapping.problem import declared_assignment
from coe.registry import Registry, load
from coe.routing.decision import decide
from tests.decisions import chat_of
from tests.experts.other_apis import SAMPLES
from tests.fakes import Gateway, Response, gateway_of, registry_of
from tests.recipes.members import answer, plan_with, stream

pytestmark = pytest.mark.anyio

VARIANTS = [
    {"name": "low", "parameters": {"reasoning_effort": "low", "max_tokens": 64}},
    {"name": "high", "parameters": {"reasoning_effort": "high"}, "prices": {"input": 1e4, "output": 1e4}},
]
PATHS: dict[Api, str] = {
    "chat": "/v1/chat/completions",
    "completions": "/v1/completions",
    "responses": "/v1/responses",
    "messages": "/v1/messages",
}


def declared(**changes: Any) -> Registry:
    """`coder` has two variants; `painter` and `generalist` have none."""
    experts = [expert.model_dump(mode="json", exclude_none=True) for expert in registry_of().experts]
    experts[0] |= {"variants": VARIANTS, "parameters": {"max_tokens": 512, "temperature": 0.5}}
    return registry_of(experts=experts, **changes)


async def send_chat(gateway: Gateway, model: str = "coder:low", **fields: Any) -> Response:
    body = {"model": model, "messages": [{"role": "user", "content": "some code"}], **fields}
    return await gateway.post(PATHS["chat"], orjson.dumps(body))


# ------------------------------------------------------------------------------------------------- declaration


def test_arms_are_the_experts_then_their_variants_then_the_arms_of_recipes() -> None:
    registry = declared(recipes=[{"name": "panel", "vote": ["coder:low", "painter"]}])
    names = ("coder", "painter", "generalist", "coder:low", "coder:high", "panel")
    assert registry.model_names == names
    assert registry.expert_names == names[:3]
    assert registry.model_names == (*names[:5], "panel")
    low, high = registry.variants
    assert low.parameters == {"reasoning_effort": "low", "max_tokens": 64, "temperature": 0.5}
    assert (low.prices.input, high.prices.input) == (0.0, 1e4)
    assert registry.arm("panel").members[0].expert_name == "coder"  # type: ignore[union-attr]


BASE = """\
version: 1
categories: [{name: general, description: g}]
experts:
  - name: a
    model: m
    runtime: external
    base_url: http://h/v1
    variants:
      - {name: low, parameters: {reasoning_effort: low}}
assignment: {general: a}
"""


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        (
            "effort: low}}",
            "effort: low}}\n      - {name: low, parameters: {top_p: 1}}",
            "10: the name 'low' is already",
        ),
        ("reasoning_effort: low", "model: x, tools: []", "9: parameters may not set model, tools; they come from"),
        ("{reasoning_effort: low}", "{}", "9: .*parameters: dictionary should have at least 1 item"),
        ("name: low,", "name: 'a:b',", "9: .*name: string should match pattern"),
        ("name: a\n", "name: 'a:low'\n", "4: .*name: string should match pattern"),
        ("general: a}", "general: 'a:lo'}", "10: unknown expert 'a:lo'; did you mean 'a:low'"),
        (
            "    variants",
            "    apis: [embeddings]\n    variants",
            "9: 'a' does not support the chat API, which variants",
        ),
        ("low}}\n", "low}}\nrecipes: [{name: r, vote: [a, 'a:x']}]\n", "10: unknown expert 'a:x'; did you mean"),
    ],
)
def test_a_wrong_variant_is_reported_with_its_line(tmp_path: Path, old: str, new: str, problem: str) -> None:
    assert BASE.count(old) == 1
    (tmp_path / "experts.yaml").write_text(BASE.replace(old, new))
    with pytest.raises(ConfigError, match=problem):
        load(tmp_path / "experts.yaml", environ={})


# ------------------------------------------------------------------------------------------------- requests


@asynccontextmanager
async def echo_server(bodies: list[dict[str, Any]]) -> AsyncIterator[str]:
    """A server that keeps every body, and answers in the request's API. Yields its base URL."""

    async def respond(request: web.Request) -> web.StreamResponse:
        bodies.append(await request.json())
        api = next(api for api, path in PATHS.items() if request.path == path)
        plain = orjson.loads(answer("hi")[0]) if api == "chat" else SAMPLES[api].plain
        if not bodies[-1].get("stream"):
            return web.json_response(plain)
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        for event in stream("hi") if api == "chat" else [f"data: {one}\n\n".encode() for one in SAMPLES[api].events]:
            await response.write(event)
        return response

    app = web.Application()
    for path in PATHS.values():
        app.router.add_post(path, respond)
    runner = web.AppRunner(app, shutdown_timeout=0)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    await runner.cleanup()


@asynccontextmanager
async def gateway_to(url: str) -> AsyncIterator[Gateway]:
    spec = declared().experts[0].model_dump(mode="json", exclude_none=True)
    spec |= {"base_url": url, "apis": list(PATHS), "system_prompt": "be brief"}
    registry = registry_of(experts=[spec], assignment={"general": "coder"})
    async with Client() as session:
        experts = build_experts(registry, {}, session=session)
        async with gateway_of(registry, real_experts=experts) as gateway:
            yield gateway


SENT: dict[Api, dict[str, Any]] = {
    "chat": {"reasoning_effort": "low", "max_tokens": 64},
    "completions": {"reasoning_effort": "low", "max_tokens": 64},
    "responses": {"reasoning": {"effort": "low"}, "max_output_tokens": 64},
    "messages": {"reasoning_effort": "low", "max_tokens": 64},
}


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("api", PATHS)
async def test_a_pinned_variant_sends_its_parameters_to_the_server_of_its_expert(api: Api, streamed: bool) -> None:
    bodies: list[dict[str, Any]] = []
    async with echo_server(bodies) as url, gateway_to(url) as gateway:
        content = [{"role": "user", "content": "hi"}]
        prompt = {"prompt": "hi"} if api == "completions" else {"input" if api == "responses" else "messages": content}
        body = {"model": "coder:low", "stream": streamed, **prompt}
        if api == "messages":
            body["max_tokens"] = 64  # required there
        response = await gateway.post(PATHS[api], orjson.dumps(body))
        assert response.status == 200, response.body
        (sent,) = bodies
        assert {name: sent.get(name) for name in SENT[api]} == SENT[api]
        assert sent["temperature"] == 0.5  # of the expert
        assert sent["model"] == "m"
        headers = {name: response.headers[f"x-coe-{name}"] for name in ("expert", "variant", "reason")}
        assert headers == {"expert": "coder", "variant": "low", "reason": "pinned"}
        assert gateway.records[0].expert == "coder:low"


async def test_the_expert_itself_keeps_its_own_parameters_and_the_client_s() -> None:
    bodies: list[dict[str, Any]] = []
    async with echo_server(bodies) as url, gateway_to(url) as gateway:
        response = await send_chat(gateway, "coder", reasoning_effort="high")
        assert "x-coe-variant" not in response.headers
    assert (bodies[0]["max_tokens"], bodies[0]["reasoning_effort"]) == (512, "high")


@pytest.mark.parametrize(
    ("fields", "field"),
    [({"reasoning_effort": "high"}, "reasoning_effort"), ({"max_completion_tokens": 65}, "max_completion_tokens")],
)
async def test_a_pinned_variant_refuses_a_request_that_contradicts_it(fields: dict[str, Any], field: str) -> None:
    async with gateway_of(declared()) as gateway:
        response = await send_chat(gateway, **fields)
        assert not gateway.experts["coder"].calls
    assert response.status == 400
    remedy = f"leave {field} out of the request, or request 'coder'"
    assert response.error["message"] == f"coder:low sets {field} to another value than the request; {remedy}"


async def test_equal_or_null_values_do_not_contradict_a_variant() -> None:
    async with gateway_of(declared()) as gateway:
        assert (await send_chat(gateway, reasoning_effort="low", max_tokens=None)).status == 200


async def test_embeddings_do_not_go_to_variants() -> None:
    experts = [declared().experts[0].model_dump(mode="json", exclude_none=True) | {"apis": ["chat", "embeddings"]}]
    async with gateway_of(registry_of(experts=experts, assignment={"general": "coder"})) as gateway:
        body = orjson.dumps({"model": "auto", "input": "hi"})
        assert (await gateway.post("/v1/embeddings", body)).headers["x-coe-expert"] == "coder"
        refused = await gateway.post("/v1/embeddings", orjson.dumps({"model": "coder:low", "input": "hi"}))
    assert refused.status == 400


# ------------------------------------------------------------------------------------------------- routing


async def test_a_category_may_be_assigned_to_a_variant_and_a_contradicting_request_goes_elsewhere() -> None:
    registry = declared(assignment={"code": "coder:low", "art": "painter", "general": "generalist"})
    async with gateway_of(registry) as gateway:
        routed, elsewhere = await send_chat(gateway, "auto"), await send_chat(gateway, "auto", reasoning_effort="high")
        assert gateway.experts["coder"].calls[0].parameters == VARIANTS[0]["parameters"]
    assert (routed.headers["x-coe-expert"], routed.headers["x-coe-variant"]) == ("coder", "low")
    assert elsewhere.headers.get("x-coe-variant") != "low"


async def test_the_expert_answers_what_its_assigned_variant_cannot_take() -> None:
    registry = declared(assignment={"code": "generalist", "art": "painter", "general": "coder:low"})
    async with gateway_of(registry) as gateway:
        body = {"model": "auto", "messages": [{"role": "user", "content": "general"}], "max_tokens": 100}
        response = await gateway.post(PATHS["chat"], orjson.dumps(body))
        (record,) = gateway.records
    assert (record.expert, record.reason) == ("coder", "routed")
    assert "x-coe-variant" not in response.headers


def test_a_plan_that_allows_a_variant_only_falls_back_on_its_expert() -> None:
    registry = declared()
    names = registry.single_names
    assignment = declared_assignment(registry, ("code", "art", "general"))
    only = np.where(np.array(names) == "coder:low", 0.7, -np.inf)
    assignment = replace(assignment, quality=np.tile(only, (3, 1)))
    prediction = Prediction(np.array([0.8, 0.1, 0.1], np.float32), "fast")
    chat = replace(chat_of("x"), fields={"max_tokens": 100})
    found = decide(chat, prediction, registry=registry, assignment=assignment)
    assert (found.expert, found.utility[0]) == ("coder", pytest.approx(0.7))


async def test_a_recipe_refuses_a_request_that_contradicts_a_variant_of_it() -> None:
    registry = declared(recipes=[{"name": "panel", "vote": ["coder:low", "painter"]}])
    async with gateway_of(registry, coder=answer("7"), painter=answer("7")) as gateway:
        response = await send_chat(gateway, "panel", max_tokens=100)
    assert response.status == 400
    assert "leave max_tokens out of the request, or request 'coder'" in response.json["error"]["message"]


async def test_after_a_failure_no_other_arm_of_the_same_expert_is_called() -> None:
    registry = declared(assignment={"code": "coder:low", "art": "painter", "general": "generalist"})
    async with gateway_of(registry, coder=ExpertUnavailable("down", expert="coder")) as gateway:
        response = await send_chat(gateway, "auto")
        (record,) = gateway.records
        assert len(gateway.experts["coder"].calls) == 1
    assert response.headers["x-coe-fallback-from"] == "coder:low"
    assert (record.fallback_from, record.cause) == ("coder:low", "error")
    assert {"coder", "coder:high"} <= set(record.candidates)  # the decision names what it might have chosen


async def test_a_failed_variant_is_the_record_s_expert() -> None:
    async with gateway_of(declared(), coder=ExpertUnavailable("down", expert="coder")) as gateway:
        response = await send_chat(gateway)
        (record,) = gateway.records
    assert response.status == 503
    assert (record.expert, record.reason, record.fallback_from) == ("coder:low", "pinned", "")


async def test_a_variant_shares_the_health_and_the_breaker_of_its_expert() -> None:
    registry = declared()
    bodies: list[dict[str, Any]] = []
    async with echo_server(bodies) as url, gateway_to(url) as gateway:
        composition = gateway.serving_state.serving.composition
        assert list(composition.experts) == ["coder"]  # one server, one breaker
        assert composition.variants["coder:low"].health is composition.experts["coder"].health
    assert registry.digest != registry_of().digest


async def test_variants_and_recipes_of_an_expert_that_is_down_or_overloaded_are_so_too() -> None:
    registry = declared(
        assignment={"code": "coder:low", "art": "painter", "general": "generalist"},
        recipes=[{"name": "panel", "vote": ["coder:low", "painter"]}],
        policy={"max_quality_loss": 1.0},
    )
    plan = plan_with("panel", registry, quality=0.99)
    async with gateway_of(registry, assignment=plan) as gateway:
        decisions = []
        for health in (Health(), Health(load=1.0), Health(up=False, cause="timeout")):
            gateway.experts["coder"].health = health
            body = {"model": "auto", "messages": [{"role": "user", "content": "code"}]}
            decisions.append((await gateway.post("/v1/route", orjson.dumps(body))).json)
    assert [(one["expert"], one["reason"]) for one in decisions] == [
        ("coder:low", "routed"),
        ("generalist", "spilled"),
        ("panel", "fallback"),
    ]
    assert (decisions[2]["fallback_from"], decisions[2]["cause"]) == ("coder:low", "timeout")


async def test_a_variant_may_be_a_member_of_a_recipe_beside_its_expert() -> None:
    registry = declared(recipes=[{"name": "panel", "vote": ["coder:low", "coder:high", "painter"]}])
    async with gateway_of(registry, coder=answer("7"), painter=answer("7")) as gateway:
        response = await send_chat(gateway, "panel")
        (record,) = gateway.records
        assert [call.parameters for call in gateway.experts["coder"].calls] == [
            variant["parameters"] for variant in VARIANTS
        ]
    assert response.headers["x-coe-variant"] == "low"
    assert [call.expert for call in record.steps] == ["coder:low", "coder:high", "painter"]
    assert record.cost == pytest.approx((3 + 5) * 1e4 / 1e6)  # the variant's own prices


async def test_variants_are_models_and_counted_with_their_expert() -> None:
    async with gateway_of(declared()) as gateway:
        await send_chat(gateway, "coder:high")
        await send_chat(gateway, "coder")
        models = await gateway.post("/v1/models", method="GET")
        one = await gateway.post("/v1/models/coder:low", method="GET")
        experts = await gateway.post("/v1/experts", method="GET")
        stats = await gateway.post("/v1/stats", method="GET")
        page = (await gateway.post("/metrics", method="GET")).body
    assert sum(stats.json["experts"][0]["first_byte"]) == 2
    assert [model["id"] for model in models.json["data"]][4:] == ["coder:low", "coder:high"]
    assert one.status == 200
    coder = experts.json["data"][0]
    assert (coder["id"], coder["variants"], coder["requests"]) == ("coder", ["low", "high"], 2)
    assert coder["tokens"] == {"input": 6, "output": 10}
    assert b'coe_tokens_total{expert="coder:high",kind="input"} 3' in page


async def test_a_chain_may_end_with_a_variant_and_a_fuse_may_be_written_by_one() -> None:
    recipes = [
        {"name": "polished", "chain": ["painter", "coder:high"]},
        {"name": "council", "fuse": ["painter", "generalist"], "by": "coder:low"},
    ]
    async with gateway_of(declared(recipes=recipes), coder=answer("done"), painter=answer("draft")) as gateway:
        chained, fused = await send_chat(gateway, "polished"), await send_chat(gateway, "council")
        sent = [call.parameters for call in gateway.experts["coder"].calls]
    assert (chained.headers["x-coe-variant"], fused.headers["x-coe-variant"]) == ("high", "low")
    assert sent == [VARIANTS[1]["parameters"], VARIANTS[0]["parameters"]]


def test_litellm_gets_the_parameters_of_a_variant_over_those_of_its_expert() -> None:
    expert = declared().experts[0]
    fields = {"messages": [{"role": "user", "content": "hi"}], "input": "hi", "temperature": 1}
    call = Call(fields, False, 5.0, 5.0, parameters=VARIANTS[0]["parameters"])  # type: ignore[arg-type]
    found = litellm_arguments(call, expert)
    assert {name: found[name] for name in SENT["chat"]} == SENT["chat"]
    assert found["temperature"] == 1


def test_coe_check_names_the_variants(tmp_path: Path) -> None:
    (tmp_path / "experts.yaml").write_text(BASE)
    result = CliRunner().invoke(app, ["check", "--config", str(tmp_path / "experts.yaml"), "--json"])
    assert orjson.loads(result.stdout)["variants"] == ["a:low"]
