"""Requests for local experts only, and lists of experts per key: no request reaches an expert that is excluded."""

from __future__ import annotations

import asyncio
import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

import coe.routing.composition
from coe.core import Call, Chat, ExpertRule, Health, Message, RequestOptions
from coe.errors import (
    ExpertBusy,
    ExpertInvalidResponse,
    ExpertTimeout,
    ExpertUnavailable,
    RequestError,
)
from coe.planning.assignment import Assignment
from coe.planning.problem import declared_assignment
from coe.recipes.expert import build_recipes
from coe.registry import Registry
from coe.routing.composition import Composition, RoutedRequest
from tests.access.samples import key_of
from tests.fakes import Gateway, Response, ScriptedReply, WordRouter, gateway_of, registry_of
from tests.recipes.members import answer
from tests.retrieval.gates import ScriptedRetrieval, gate_of, passage

pytestmark = pytest.mark.anyio
REQUESTS = 4_000
BATCH = 1_000
SECRET, PUBLIC = "secret", "public"
EXTERNAL = {"model": "m", "runtime": "external", "base_url": "http://127.0.0.1:9/v1"}
APIS = ["chat", "responses", "embeddings", "rerank"]
EXPERTS = [
    {"name": "coder", "capabilities": ["tools"], "apis": APIS, **EXTERNAL, "local": True},
    {"name": "tiny", "model": "m", "runtime": "transformers"},
    {"name": "painter", "capabilities": ["images"], "apis": APIS, **EXTERNAL},
    {"name": "generalist", "apis": APIS, **EXTERNAL},
]
RECIPES = [
    {"name": "mixed", "cascade": ["coder", "generalist"]},
    {"name": "graded", "cascade": ["coder", "tiny"], "signal": "judge", "judge": "painter"},
    {"name": "inside", "cascade": ["tiny", "coder"]},
    {"name": "written", "chain": ["tiny", "generalist"]},
]
LOCAL = {"coder", "tiny"}
REMOTE_MODELS = ("painter", "generalist", "mixed", "graded", "written")
POLICY = {
    "exploration": {"rate": 0.5, "max_quality_loss": 1.0},
    "max_attempts": 5,
}


def declared(**changes: Any) -> Registry:
    return registry_of(**{"experts": EXPERTS, "recipes": RECIPES} | changes)


def measured(registry: Registry) -> Assignment:
    """A plan that prefers remote experts, in which routing may select every arm."""
    names = registry.model_names
    plan = declared_assignment(registry, WordRouter.categories)
    row = np.array([0.5 if name in LOCAL else 0.9 for name in names])
    quality = np.tile(row, (len(plan.categories), 1))
    return replace(plan, experts=names, quality=quality, price=np.zeros_like(quality), unmeasured=None)


class FaultyExpert:
    """An expert that fails at random, and notes the texts that reach it. Its breaker opens and closes at random, it is
    often full."""

    def __init__(self, name: str, chance: random.Random) -> None:
        self.name = name
        self.received = {SECRET: 0, PUBLIC: 0}
        self._chance = chance

    @property
    def health(self) -> Health:
        return Health(self._chance.random() < 0.7, self._chance.choice((0.0, 0.5, 1.0, 2.0)), 2)

    async def stream(self, call: Call) -> ScriptedReply:
        text = str(call.fields)
        for word in self.received:
            self.received[word] += word in text
        await asyncio.sleep(0)
        errors = (ExpertUnavailable, ExpertBusy, ExpertTimeout, ExpertInvalidResponse)
        if self._chance.random() < 0.5:
            raise self._chance.choice(errors)("injected", expert=self.name)
        return ScriptedReply(answer(self._chance.choice("XY")), stream=call.stream)


def request_of(number: int, chance: random.Random) -> tuple[Chat, RequestOptions]:
    """A random request of a conversation of several turns: marked as local in one of the possible ways, or public."""
    kind = chance.choice(("header", "header", "key", "key", "both", "both", "public"))
    word = PUBLIC if kind == "public" else SECRET
    rule = {
        "header": ExpertRule(only_local=True),
        "key": ExpertRule("alice", ("coder", "tiny", "painter"), True),
        "both": ExpertRule("bob", ("*",), True),
        "public": None,
    }[kind]
    api = chance.choice(("chat", "chat", "chat", "responses", "embeddings", "rerank"))
    model = chance.choice(("auto", "auto", "auto", "coder", "inside", *REMOTE_MODELS))
    texts = (
        f"turn of conversation {number % 50} code",
        f"{word} {chance.choice(('code', 'art', 'general', 'ponder'))}",
    )
    roles = ("user", "assistant", "user")
    messages = tuple(Message(role, text) for role, text in zip(roles, (texts[0], "done", texts[1]), strict=True))
    fields = {"messages": [{"role": one.role, "content": one.text} for one in messages]}
    stream = api in ("chat", "responses") and chance.random() < 0.5
    options = RequestOptions(f"s{number % 50}", chance.random(), rule=rule)
    return Chat(model, messages, stream, frozenset(), 100, fields, api), options  # type: ignore[arg-type]


async def answered(composition: Composition, chat: Chat, options: RequestOptions) -> str:
    """Send one request through all steps; return the expert that answered, or the error code."""
    request = RoutedRequest(chat, options)
    try:
        if chat.api != "rerank":
            request.routed, request.prediction = await composition.classifier.classify(chat)
        await composition.assign(request)
        reply = await composition.call(request, chat, deadline=asyncio.get_running_loop().time() + 60)
        async for _ in reply.chunks():
            pass
        await reply.aclose()
    except RequestError as error:
        return error.code
    assert request.decision is not None
    return request.decision.expert


async def test_of_thousands_of_marked_requests_none_leaves_the_local_experts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coe.routing.composition, "FIRST_RETRY_PAUSE_SECONDS", 0.0)
    chance, registry = random.Random(22), declared(policy=POLICY)
    experts = {name: FaultyExpert(name, chance) for name in registry.expert_names}
    with ThreadPoolExecutor(1) as threads:
        composition = Composition(
            registry,
            router=WordRouter(),
            assignment=measured(registry),
            experts=experts,
            threads=threads,
            recipes=build_recipes(registry, experts, categories=len(WordRouter.categories)),
        )
        marked, outcomes = 0, set[str]()
        while marked < REQUESTS:
            requests = [request_of(number, chance) for number in range(BATCH)]
            marked += sum(options.rule is not None for _, options in requests)
            outcomes |= set(await asyncio.gather(*(answered(composition, *one) for one in requests)))
    received = {name: expert.received for name, expert in experts.items()}
    assert all(received[name][SECRET] == 0 for name in received if name not in LOCAL), received
    assert all(received[name][SECRET] > 100 for name in LOCAL)
    assert all(count[PUBLIC] > 100 for count in received.values())  # the same faults do reach them without a mark
    assert outcomes >= {"expert_not_local", "expert_timeout", "model_not_found", *LOCAL, "inside"}, outcomes


MARKED = {"content-type": "application/json", "x-coe-only-local": "true"}
KEYS = [
    key_of("alice", experts=["coder", "gen*"]).model_dump(mode="json"),
    key_of("bob", only_local=True).model_dump(mode="json"),
    key_of("carol").model_dump(mode="json"),
]
CHAT = "/v1/chat/completions"


def keyed(**changes: Any) -> Registry:
    return declared(access={"keys": KEYS}, **changes)


def headers_of(key: str, **more: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}", "content-type": "application/json", **more}


async def send_chat(
    gateway: Gateway, text: str = "hello general", *, headers: dict[str, str], path: str = CHAT, **fields: Any
) -> Response:
    body = {"model": "auto", "messages": [{"role": "user", "content": text}], **fields}
    return await gateway.post(path, orjson.dumps(body), headers=headers)


async def test_the_header_keeps_a_request_on_local_experts_and_its_text_out_of_the_log() -> None:
    async with gateway_of(declared(log={"store_prompts": True})) as gateway:
        response = await send_chat(gateway, headers=MARKED)
        assert (response.status, response.headers["x-coe-expert"]) == (200, "coder")
        assert (await send_chat(gateway, headers={**MARKED, "x-coe-only-local": "false"})).status == 200
        marked, public = gateway.records
        assert (marked.only_local, marked.prompt, marked.left_out) == (True, None, ())
        assert marked.excluded == ("painter", "generalist")
        assert (public.only_local, public.prompt, public.excluded) == (False, "hello general", ())
        assert (marked.limited, public.limited) == (True, False)


@pytest.mark.parametrize("source", ["header", "key", "rule", "none"])
async def test_no_length_lifts_the_mark_and_passages_of_documents_stay_with_the_request(source: str) -> None:
    experts = [{**one, "capabilities": ["tools"], "context_length": 10**6} for one in EXPERTS if one["name"] != "tiny"]
    rules = [{"name": "tools", "when": {"tools": "secret"}, "only_local": True}] if source == "rule" else []
    registry = keyed(experts=experts, recipes=[], rules=rules)
    scripted = ScriptedRetrieval(passage("The tower was built in 1889."), gate=gate_of(3.0))
    headers = headers_of("bob" if source == "key" else "carol", **{"user-agent": "x" * 1000, "x-coe-retrieval": "on"})
    headers |= {"x-coe-only-local": "true"} if source == "header" else {}
    tools = [{"type": "function", "function": {"name": name}} for name in [*["x" * 1000] * 300, "secret"]]
    async with gateway_of(registry, retrieval=scripted.retrieval) as gateway:
        for messages in ([], [{"role": "system", "content": "x" * 200_000}]):
            messages = [*messages, {"role": "user", "content": "art when?"}]  # the plan's expert is not local
            response = await send_chat(gateway, headers=headers, messages=messages, tools=tools)
            assert (response.status, response.headers["x-coe-retrieval"][:4]) == (200, "used"), response.body
        expert = "painter" if source == "none" else "coder"
        assert {name: len(one.calls) for name, one in gateway.experts.items() if one.calls} == {expert: 2}


@pytest.mark.parametrize("model", REMOTE_MODELS)
async def test_a_marked_request_for_what_is_not_local_is_refused_with_the_remedy(model: str) -> None:
    async with gateway_of(declared()) as gateway:
        response = await send_chat(gateway, headers=MARKED, model=model)
        assert (response.status, response.error["code"], response.error["param"]) == (403, "expert_not_local", "model")
        assert "auto, coder, tiny, inside" in response.error["message"]
        by_header = await send_chat(gateway, headers={**MARKED, "x-coe-recipe": "mixed"})
        assert (by_header.status, by_header.error["param"]) == (403, "x-coe-recipe")
        assert all(expert.calls == [] for expert in gateway.experts.values())  # type: ignore[attr-defined]


async def test_operations_that_pass_through_and_embeddings_obey_the_mark() -> None:
    async with gateway_of(declared()) as gateway:
        rerank = {"query": "q", "documents": ["d"]}
        assert (await send_chat(gateway, headers=MARKED, path="/v1/rerank", **rerank)).status == 200
        assert (await send_chat(gateway, headers=MARKED, path="/v1/rerank", model="painter", **rerank)).status == 403
        assert (await send_chat(gateway, headers=MARKED, path="/v1/embeddings", input="x")).status == 200
        assert len(gateway.experts["coder"].calls) == 2
        assert gateway.experts["painter"].calls == []


async def test_a_key_sees_and_uses_only_its_experts() -> None:
    async with gateway_of(keyed(aliases={"gpt-*": "painter", "claude": "painter"})) as gateway:
        listed = await gateway.post("/v1/models", method="GET", headers=headers_of("alice"))
        assert [one["id"] for one in listed.json["data"]] == ["auto", "coder", "generalist", "mixed"]
        one = await gateway.post("/v1/models/painter", method="GET", headers=headers_of("alice"))
        assert one.status == 404
        assert "painter" not in one.error["message"].partition("known:")[2]
        for model in ("painter", "tiny", "graded", "inside", "written"):
            refused = await send_chat(gateway, model=model, headers=headers_of("alice"))
            assert (refused.status, refused.error["code"]) == (404, "model_not_found")
            assert "permitted: auto, coder, generalist, mixed" in refused.error["message"]
        by_alias = await send_chat(gateway, model="gpt-4o", headers=headers_of("alice"))
        assert (by_alias.status, "painter" in by_alias.error["message"]) == (404, False)
        routed = await send_chat(gateway, "art", headers=headers_of("alice"))  # the plan's expert is painter
        assert routed.headers["x-coe-expert"] in ("coder", "generalist")
        assert gateway.records[-1].excluded == ("tiny", "painter")
        assert (await send_chat(gateway, model="painter", headers=headers_of("carol"))).status == 200
        calls = {name: len(expert.calls) for name, expert in gateway.experts.items()}
        assert (calls["painter"], calls["tiny"]) == (1, 0)


async def test_the_header_cannot_lift_the_rule_of_a_key() -> None:
    async with gateway_of(keyed()) as gateway:
        headers = headers_of("bob", **{"x-coe-only-local": "false"})
        assert (await send_chat(gateway, headers=headers)).headers["x-coe-expert"] == "coder"
        assert (await send_chat(gateway, model="generalist", headers=headers)).status == 403
        both = await send_chat(gateway, headers=headers_of("alice", **{"x-coe-only-local": "true"}))
        assert gateway.records[-1].excluded == ("tiny", "painter", "generalist")
        assert both.headers["x-coe-expert"] == "coder"


async def test_the_answers_of_a_key_with_a_list_belong_to_it(tmp_path: Path) -> None:
    """Another key of its tenant would send the stored conversation to experts beyond the list."""

    def reply(number: int) -> bytes:
        output = {"id": f"msg_{number}", "type": "message", "role": "assistant", "content": []}
        return orjson.dumps({"id": f"resp_{number}", "object": "response", "status": "completed", "output": [output]})

    keys = [key_of("alice", tenant="acme", experts=["coder"]), key_of("carol", tenant="acme")]
    keys += [key_of("dave", tenant="acme", experts=["*"])]
    registry = declared(access={"keys": [key.model_dump(mode="json") for key in keys]})
    path = "/v1/responses"
    async with gateway_of(registry, stored=tmp_path, coder=(reply(1),), generalist=(reply(2),)) as gateway:

        async def respond(key: str, *, local: bool = False, **fields: Any) -> Response:
            mark = {"x-coe-only-local": "true"} if local else {}
            body = {"model": "auto", "input": "hello general", **fields}
            return await gateway.post(path, orjson.dumps(body), headers=headers_of(key, **mark))

        assert (await respond("alice", input="secret general")).headers["x-coe-expert"] == "coder"
        for other in ("carol", "dave"):
            for method in ("GET", "DELETE"):
                found = await gateway.post(f"{path}/resp_1", method=method, headers=headers_of(other))
                assert found.status == 404
            for local in (False, True):
                refused = await respond(other, local=local, previous_response_id="resp_1")
                assert (refused.status, refused.error["code"]) == (400, "previous_response_not_found")
                by_item = await respond(other, local=local, input=[{"type": "item_reference", "id": "msg_1"}])
                assert (by_item.status, by_item.error["code"]) == (400, "item_not_found")
        assert gateway.experts["generalist"].calls == []

        assert (await respond("carol")).headers["x-coe-expert"] == "generalist"
        gateway.experts["coder"].script = (reply(3),)  # type: ignore[attr-defined]
        assert (await respond("alice", previous_response_id="resp_2")).status == 200
        assert (await respond("carol", previous_response_id="resp_3")).status == 400
        gateway.experts["coder"].script = (reply(4),)  # type: ignore[attr-defined]
        assert (await respond("alice", local=True, previous_response_id="resp_3")).status == 200
        assert (await respond("alice", previous_response_id="resp_4")).status == 400
        assert (await respond("alice", previous_response_id="resp_1")).status == 200


async def test_the_answer_cache_is_separate_for_each_rule() -> None:
    """An answer of an expert that the request may not reach is not returned either."""
    async with gateway_of(declared(cache={}), generalist=(answer("remote")), coder=(answer("local"))) as gateway:
        public = await send_chat(gateway, temperature=0, headers={"content-type": "application/json"})
        marked = await send_chat(gateway, temperature=0, headers=MARKED)
        assert (public.headers["x-coe-cache"], marked.headers["x-coe-cache"]) == ("miss", "miss")
        assert marked.headers["x-coe-expert"] == "coder"
