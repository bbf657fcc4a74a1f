"""Rules of experts.yaml in the request path: which expert answers, and where the rule's name appears."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from coe.registry import Registry
from tests.access.samples import key_of
from tests.fakes import Gateway, Response, gateway_of, registry_of

pytestmark = pytest.mark.anyio
CHAT = "/v1/chat/completions"
APIS = ["chat", "messages", "embeddings", "rerank"]
EXTERNAL = {"model": "m", "runtime": "external", "base_url": "http://127.0.0.1:9/v1", "apis": APIS}
EXPERTS = [
    {"name": "coder", "capabilities": ["tools"], **EXTERNAL, "local": True},
    {"name": "painter", **EXTERNAL},
    {"name": "generalist", "capabilities": ["tools"], **EXTERNAL},
]
RULES = [
    {"name": "patients", "when": {"system": "patient record"}, "only_local": True},
    {"name": "agents", "when": {"tools": ["Bash", "Edit"], "client": "claude-*"}, "odds": {"code": 1000}},
    {"name": "team", "when": {"key": "alice", "path": CHAT}, "expert": "painter"},
    {"name": "contracts", "when": {"system": "contract assistant"}, "category": "art"},
    {"name": "long", "when": {"tokens": {"min": 500}}, "expert": "careful"},
    {"name": "german", "when": {"language": "de"}, "expert": "generalist"},
    {"name": "alias", "when": {"model": "gpt-4*"}, "category": "code"},
    {"name": "vectors", "when": {"path": ["/v1/embeddings", "/v1/rerank"]}, "expert": "painter"},
]
KEYS = [key_of(name, scopes=["chat", "route", "admin"]).model_dump(mode="json") for name in ("alice", "bob")]
TOOLS = {"tools": [{"type": "function", "function": {"name": "Bash"}}]}


def declared(**changes: Any) -> Registry:
    options: dict[str, Any] = {
        "experts": EXPERTS,
        "rules": RULES,
        "access": {"keys": KEYS},
        "aliases": {"gpt-*": "auto"},
    }
    recipe = {"name": "careful", "cascade": ["coder", "painter"]}
    return registry_of(**options | {"recipes": [recipe]} | changes)


async def send_chat(
    gateway: Gateway, text: str, *, system: str = "", key: str = "bob", client: str = "", path: str = CHAT, **more: Any
) -> Response:
    messages = [{"role": "system", "content": system}] if system else []
    body = {"model": "auto", "messages": [*messages, {"role": "user", "content": text}], **more}
    headers = {"content-type": "application/json", "x-api-key": key, "user-agent": client}
    return await gateway.post(path, orjson.dumps(body), headers=headers)


@pytest.mark.parametrize(
    ("request_", "expert", "reason", "category", "rule"),
    [
        ({"text": "hello general"}, "generalist", "routed", "general", ""),
        ({"text": "art", "system": "A patient record."}, "coder", "routed", "art", "patients"),
        ({"text": "general", "client": "Claude-CLI/2", **TOOLS}, "coder", "routed", "code", "agents"),
        ({"text": "general", "client": "curl", **TOOLS}, "generalist", "routed", "general", ""),
        ({"text": "code", "key": "alice"}, "painter", "rule", "code", "team"),
        ({"text": "code", "system": "You are a Contract assistant"}, "painter", "routed", "art", "contracts"),
        ({"text": "code " * 500}, "coder", "rule", "code", "long"),  # a member of the recipe
        ({"text": "code language:de ."}, "generalist", "rule", "code", "german"),
        ({"text": "art", "model": "gpt-4o"}, "coder", "routed", "code", "alias"),
        ({"text": "art", "model": "gpt-5"}, "painter", "routed", "art", ""),
        ({"text": "code", "key": "alice", "model": "generalist"}, "generalist", "pinned", "code", ""),
        ({"text": "art", "system": "patient record", "model": "coder"}, "coder", "pinned", "art", "patients"),
        ({"text": "code", "key": "alice", **TOOLS}, "coder", "routed", "code", "team"),  # painter takes no tools
    ],
)
async def test_header_record_and_route_name_the_rule_that_applies(
    request_: dict[str, Any], expert: str, reason: str, category: str, rule: str
) -> None:
    answer = (b'{"choices":[{"message":{"role":"assistant","content":"7"}}]}',)
    async with gateway_of(declared(), coder=answer, painter=answer, generalist=answer) as gateway:
        response = await send_chat(gateway, **request_)
        assert response.status == 200, response.body
        (record,) = gateway.records
        headers = response.headers
        assert (headers["x-coe-expert"], headers["x-coe-reason"]) == (expert, reason)
        assert (headers["x-coe-category"], headers.get("x-coe-rule", "")) == (category, rule)
        assert (record.reason, record.category, record.rule) == (reason, category, rule)
        decided = (await send_chat(gateway, path="/v1/route", **request_)).json
        assert (decided["reason"], decided["category"], decided["rule"]) == (reason, category, rule)


async def test_a_rule_for_local_experts_holds_for_a_named_expert_and_keeps_the_text_out_of_the_log() -> None:
    async with gateway_of(declared(log={"store_prompts": True})) as gateway:
        refused = await send_chat(gateway, "art", system="patient record", model="painter")
        assert (refused.status, refused.error["code"]) == (403, "expert_not_local")
        assert "`rules` in experts.yaml" in refused.error["message"]
        assert (await send_chat(gateway, "art", system="patient record")).status == 200
        assert (gateway.records[-1].only_local, gateway.records[-1].prompt) == (True, None)


async def test_rules_hold_for_embeddings_and_operations_that_pass_through() -> None:
    async with gateway_of(declared()) as gateway:
        for path, fields in (("/v1/embeddings", {"input": "x"}), ("/v1/rerank", {"query": "q", "documents": ["d"]})):
            response = await send_chat(gateway, "", path=path, **fields)
            found = [response.headers[f"x-coe-{name}"] for name in ("expert", "reason", "rule")]
            assert found == ["painter", "rule", "vectors"], path
            assert gateway.records[-1].rule == "vectors"


async def test_the_cache_does_not_give_an_answer_that_another_rule_chose() -> None:
    rules = [{"name": "a", "when": {"client": "a*"}, "expert": "painter"}]
    answer = {
        name: (b'{"choices":[{"finish_reason":"stop","message":{"content":"%s"}}]}' % name.encode(),)
        for name in ("coder", "painter")
    }
    async with gateway_of(declared(rules=rules, cache={"when": "always"}), **answer) as gateway:
        sent = [await send_chat(gateway, "code", client=client) for client in ("a", "b", "a", "b")]
        assert [one.headers["x-coe-cache"] for one in sent] == ["miss", "miss", "hit", "hit"]
        assert [one.headers["x-coe-expert"] for one in sent] == ["painter", "coder"] * 2
        assert [one.headers.get("x-coe-rule") for one in sent] == ["a", None, None, None]
