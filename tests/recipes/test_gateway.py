"""Requests of recipes through the gateway, in process: which requests get one, headers, records and limits."""

from __future__ import annotations

import hashlib
from typing import Any

import orjson
import pytest

from coe.errors import ExpertUnavailable
from coe.recipes.agreement import GRADE_TOKENS, PROMPT_TOKENS
from coe.recipes.writing import ENVELOPE_TOKENS
from coe.registry import Prices, RecipeSpec, Registry
from gateway.access.allowance import calls_of, largest_use
from gateway.access.limits import Amounts, Limiter
from tests.fakes import Gateway, Response, gateway_of, registry_of
from tests.recipes.members import answer, plan_with

pytestmark = pytest.mark.anyio
RECIPES = [
    {"name": "careful", "cascade": [["coder", "painter"], "generalist"]},
    {"name": "panel", "vote": ["coder", "painter"]},
    {"name": "polished", "chain": ["coder", "painter"]},
]
KEY = "sk-tests"


def registry(**changes: Any) -> Registry:
    return registry_of(recipes=RECIPES, **changes)


async def send_chat(
    gateway: Gateway, text: str = "hello general", *, headers: dict[str, str] | None = None, **fields: Any
) -> Response:
    body = {"model": "auto", "messages": [{"role": "user", "content": text}], **fields}
    sent = {"content-type": "application/json", **(headers or {})}
    return await gateway.post("/v1/chat/completions", orjson.dumps(body), headers=sent)


async def test_a_pinned_recipe_returns_one_members_bytes_and_says_what_it_did() -> None:
    async with gateway_of(
        registry(), coder=answer("7"), painter=answer("8"), generalist=answer("The answer is 8.")
    ) as gateway:
        response = await send_chat(gateway, model="careful")
        assert (response.status, response.body) == (200, answer("8")[0])
        shown = {name: response.headers[f"x-coe-{name}"] for name in ("expert", "reason", "recipe", "steps", "calls")}
        assert shown == {"expert": "painter", "reason": "pinned", "recipe": "careful", "steps": "2", "calls": "3"}
        listed = await gateway.post("/v1/models", method="GET")
        assert [model["id"] for model in listed.json["data"]][-3:] == ["careful", "panel", "polished"]
        (record,) = gateway.records
        assert (record.expert, record.recipe) == ("careful", "careful")
        assert (record.recipe_stop, record.attempts) == ("last_step", 1)
        assert [(call.expert, call.step, call.outcome, call.answer_class, call.accepted) for call in record.steps] == [
            ("coder", 0, "answered", 0, False),
            ("painter", 0, "answered", 1, True),
            ("generalist", 1, "answered", 1, False),
        ]
        assert (record.input_tokens, record.output_tokens) == (9, 15)


async def test_a_chain_is_pinned_by_name_and_falls_back_to_an_expert_without_any_answer() -> None:
    down = {name: ExpertUnavailable("down", expert=name) for name in ("coder", "painter")}
    declared = registry()
    async with gateway_of(registry(), coder=answer("X"), painter=answer("Y")) as gateway:
        response = await send_chat(gateway, model="polished")
        assert response.body == answer("Y")[0]
        shown = {name: response.headers[f"x-coe-{name}"] for name in ("expert", "recipe", "steps", "calls")}
        assert shown == {"expert": "painter", "recipe": "polished", "steps": "2", "calls": "2"}
    async with gateway_of(declared, assignment=plan_with("polished", declared, quality=2.0), **down) as gateway:
        response = await send_chat(gateway, "code")
        assert (response.status, response.headers["x-coe-fallback-from"]) == (200, "polished")
        (record,) = gateway.records
        assert (record.expert, record.recipe, record.recipe_stop) == ("generalist", "polished", "failed")
        assert [call.outcome for call in record.steps] == ["error", "error"]


@pytest.mark.parametrize(
    ("model", "recipe", "status", "message"),
    [
        ("auto", "pannel", 404, "the recipe 'pannel' does not exist here; known: off, careful, panel, polished"),
        ("auto", "coder", 404, "the recipe 'coder' does not exist here"),
        ("coder", "panel", 400, "model 'coder' and x-coe-recipe 'panel' contradict each other: send model 'auto'"),
        ("panel", "off", 400, "model 'panel' and x-coe-recipe 'off' contradict each other"),
        ("auto", "é", 400, "x-coe-recipe must be the name of a recipe or off"),
        ("carefull", "", 404, "known: auto, coder, painter, generalist, careful, panel, polished"),
    ],
)
async def test_a_wrong_recipe_is_refused_with_the_known_ones(
    model: str, recipe: str, status: int, message: str
) -> None:
    async with gateway_of(registry()) as gateway:
        response = await send_chat(gateway, model=model, headers={"x-coe-recipe": recipe} if recipe else {})
        assert response.status == status
        assert message in response.error["message"]


@pytest.mark.parametrize(
    "fields",
    [{"tools": [{"type": "function"}]}, {"n": 2}, {"logprobs": True}, {"top_logprobs": 2}, {"audio": {"voice": "a"}}],
)
async def test_a_request_that_needs_a_single_expert_cannot_pin_a_recipe_and_is_not_routed_to_one(
    fields: dict[str, Any],
) -> None:
    declared = registry()
    plan = plan_with("panel", declared, quality=2.0)
    async with gateway_of(declared, assignment=plan) as gateway:
        assert (await send_chat(gateway, "code", **fields)).headers["x-coe-expert"] == "coder"
        assert "x-coe-recipe" not in (await send_chat(gateway, "code", **fields)).headers
        for model in ("panel", "polished"):
            response = await send_chat(gateway, model=model, **fields)
            assert (response.status, response.error["code"]) == (400, "no_capable_expert")
            assert response.error["message"].endswith("; request 'auto' or an expert, such as 'coder'")


async def test_routing_selects_an_arm_with_a_measured_quality_unless_recipes_are_off() -> None:
    declared = registry()
    scripts: dict[str, Any] = {"coder": answer("X"), "painter": answer("X")}
    async with gateway_of(declared, assignment=plan_with("panel", declared, quality=2.0), **scripts) as gateway:
        response = await send_chat(gateway, "code")
        assert (response.headers["x-coe-recipe"], response.headers["x-coe-reason"]) == ("panel", "routed")
        assert gateway.records[0].candidates[0] == "panel"
        assert "x-coe-recipe" not in (await send_chat(gateway, "art")).headers
        off = await send_chat(gateway, "code", headers={"x-coe-recipe": "off"})
        assert "x-coe-recipe" not in off.headers
        assert "panel" not in gateway.records[2].candidates


# ----------------------------------------------------------------------------------------------- limits of API keys


def keyed(*recipes: dict[str, Any], **limits: Any) -> Registry:
    local = {"model": "m", "runtime": "external", "base_url": "http://127.0.0.1:9/v1"}
    prices = {"coder": (1e4, 0), "painter": (0, 1e4), "generalist": (2e4, 2e4)}
    digest = hashlib.sha256(KEY.encode()).hexdigest()
    return registry_of(
        recipes=recipes or RECIPES,
        experts=[{"name": name, "prices": {"input": i, "output": o}, **local} for name, (i, o) in prices.items()],
        access={"keys": [{"name": "k", "sha256": digest, "scopes": ["chat", "admin"], "limits": limits}]},
    )


@pytest.fixture
def no_refill(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stops the clock of the limits, so that nothing is refilled however slow the machine is."""
    monkeypatch.setitem(Limiter.__init__.__kwdefaults__, "clock", lambda: 1_000_000.0)


@pytest.mark.usefixtures("no_refill")
async def test_a_key_reserves_the_calls_of_all_members_and_is_charged_the_sum() -> None:
    scripts: dict[str, Any] = {"coder": answer("X"), "painter": answer("X")}
    headers = {"authorization": f"Bearer {KEY}"}
    async with gateway_of(keyed(tokens_per_minute=250), **scripts) as gateway:
        one = await send_chat(gateway, model="coder", max_tokens=100, headers=headers)
        assert one.status == 200
        two = await send_chat(gateway, model="panel", max_tokens=100, headers=headers)
        assert two.status == 200
        three = await send_chat(gateway, model="careful", max_tokens=100, headers=headers)
        assert (three.status, three.error["code"]) == (400, "request_exceeds_limit")
        assert int(two.headers["x-ratelimit-remaining-tokens"]) < 50
        four = await send_chat(gateway, model="coder", max_tokens=1, headers=headers)
        assert 210 <= int(four.headers["x-ratelimit-remaining-tokens"]) <= 226  # of 250, after 8 + 16 tokens


@pytest.mark.usefixtures("no_refill")
@pytest.mark.parametrize("streams", [False, True])
async def test_a_failed_recipe_and_the_expert_that_answers_for_it_are_both_charged(streams: bool) -> None:
    declared = keyed({"name": "council", "fuse": ["coder", "painter"], "by": "generalist"}, tokens_per_minute=10_000)
    down = ExpertUnavailable("down", expert="generalist")
    scripts: dict[str, Any] = {"coder": answer("X"), "painter": answer("Y"), "generalist": down}
    headers = {"authorization": f"Bearer {KEY}"}
    async with gateway_of(declared, assignment=plan_with("council", declared, quality=2.0), **scripts) as gateway:
        form = {"type": "json_object"}  # a draft does not have it, so none is returned
        response = await send_chat(
            gateway, "code", headers=headers, stream=streams, max_tokens=50, response_format=form
        )
        shown = {name: response.headers[f"x-coe-{name}"] for name in ("fallback-from", "expert", "calls")}
        assert (response.status, shown) == (200, {"fallback-from": "council", "expert": "coder", "calls": "3"})
        (record,) = gateway.records
        assert (record.recipe_stop, record.input_tokens, record.output_tokens) == ("failed", 9, 15)
        coder, painter = 3 * 1e4, 5 * 1e4
        assert record.cost == pytest.approx((2 * coder + painter) / 1e6)
        metrics = (await gateway.post("/metrics", method="GET", headers=headers)).body.decode()
        assert 'coe_tokens_total{expert="coder",kind="output"} 10' in metrics
        assert f'coe_cost_dollars_total{{expert="painter"}} {painter / 1e6:g}' in metrics
        after = await send_chat(gateway, model="coder", max_tokens=1, headers=headers)
        assert 10_000 - 24 - 30 < int(after.headers["x-ratelimit-remaining-tokens"]) <= 10_000 - 24


async def test_a_key_reserves_the_drafts_that_a_later_step_reads() -> None:
    prices = {"coder": Prices(input=1, output=2), "painter": Prices(input=3, output=4), "large": Prices(input=10)}
    spec = RecipeSpec(name="council", fuse=("coder", "painter"), by="large", instruction="x" * 400)
    told = ENVELOPE_TOKENS + 100
    assert largest_use(calls_of(spec, prices), 1000, 100) == Amounts(
        1,
        (1000 + 100) + (1000 + 100) + (1000 + 2 * 100 + told + 100),
        pytest.approx((1000 + 200 + 3000 + 400 + (1000 + 2 * 100 + told) * 10) / 1e6),
    )
    judged = RecipeSpec(name="j", cascade=(("coder",), ("painter",)), signal="judge", judge="large")
    assert largest_use(calls_of(judged, prices), 1000, 100) == Amounts(
        1,
        3 * (1000 + 100) + PROMPT_TOKENS + GRADE_TOKENS,
        pytest.approx((1000 + 200 + 3000 + 400 + (1000 + 100 + PROMPT_TOKENS) * 10) / 1e6),
    )
    chain = RecipeSpec(name="polished", chain=("coder", "painter", "coder"))
    assert largest_use(calls_of(chain, prices), 0, 100).tokens > 5 * 100
