"""Aliases and operating points: values of `model` that stand for others, in every chat API."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from coe.registry import Registry
from tests.access.samples import key_of
from tests.fakes import Gateway, gateway_of, registry_of

pytestmark = pytest.mark.anyio

ANSWERS: dict[str, bytes] = {
    "/v1/chat/completions": b'{"choices":[]}',
    "/v1/completions": b'{"choices":[]}',
    "/v1/responses": b'{"output":[]}',
    "/v1/messages": b'{"content":[]}',
}
PRICES = {"input": 1.0, "output": 1.0}


def declared(**changes: Any) -> Registry:
    local = {"model": "m", "runtime": "external", "base_url": "http://127.0.0.1:9/v1", "context_length": 1000}
    apis = {"apis": ["chat", "completions", "responses", "messages"]}
    experts = [
        {"name": "coder", **local, **apis, "prices": PRICES},
        {"name": "painter", **local, **apis},
        {"name": "generalist", **local, **apis, "context_length": 32000},
    ]
    options = {
        "aliases": {"gpt-*": "auto", "gpt-4": "painter", "claude-*": "coe/fast", "my-coder": "coder"},
        "operating_points": {"fast": {"cost_weight": 1}, "best": {"cost_weight": 0}},
    }
    return registry_of(experts=experts, **{**options, **changes})


async def send_chat(gateway: Gateway, path: str, model: str, text: str = "code", **headers: str) -> Any:
    content: dict[str, Any] = {
        "/v1/completions": {"prompt": text},
        "/v1/responses": {"input": text},
    }.get(path, {"messages": [{"role": "user", "content": text}]})
    sent = {"content-type": "application/json", **{name.replace("_", "-"): value for name, value in headers.items()}}
    return await gateway.post(path, orjson.dumps({"model": model, **content}), headers=sent)


@pytest.mark.parametrize("path", ANSWERS)
async def test_every_chat_api_takes_aliases_and_records_both_names(path: str) -> None:
    script = (ANSWERS[path],)
    async with gateway_of(declared(), coder=script, painter=script, generalist=script) as gateway:
        for model, expert, reason, resolved, weight in (
            ("gpt-5.1", "coder", "routed", "auto", 0.0),
            ("gpt-4", "painter", "pinned", "painter", 0.0),
            ("my-coder", "coder", "pinned", "coder", 0.0),
            ("auto", "coder", "routed", "auto", 0.0),
            ("coe/best", "coder", "routed", "auto", 0.0),
            ("coe/fast", "generalist", "routed", "auto", 1.0),  # coder is the only one that costs anything
            ("claude-opus-4-8", "generalist", "routed", "auto", 1.0),
        ):
            response = await send_chat(gateway, path, model)
            assert response.status == 200, response.body
            record = gateway.records[-1]
            assert (response.headers["x-coe-expert"], record.reason) == (expert, reason), model
            assert (record.model, record.resolved_model, record.cost_weight) == (model, resolved, weight)
            assert record.expert == expert


async def test_an_unknown_model_is_refused_with_the_models_and_the_remedy() -> None:
    async with gateway_of(declared()) as gateway:
        response = await send_chat(gateway, "/v1/chat/completions", "mistral")
    assert response.status == 404
    assert response.error["code"] == "model_not_found"
    assert "auto, coe/fast, coe/best, coder, painter, generalist, gpt-4, my-coder" in response.error["message"]
    assert "aliases: {gpt-*: auto}" in response.error["message"]
    assert gateway.records[-1].model == "mistral"


@pytest.mark.parametrize("field", ["previous_response_id", "conversation"])
async def test_only_a_pinned_expert_can_use_state_of_its_server(field: str) -> None:
    body = {"model": "gpt-5", "input": "code", field: "resp_1"}
    async with gateway_of(declared(), painter=(ANSWERS["/v1/responses"],)) as gateway:
        routed = await gateway.post("/v1/responses", orjson.dumps(body))
        plain = await gateway.post("/v1/responses", orjson.dumps(body | {"model": "auto"}))
        pinned = await gateway.post("/v1/responses", orjson.dumps(body | {"model": "gpt-4"}))
    assert routed.status == plain.status == 400
    assert routed.error["param"] == "model"
    assert pinned.status == 200


@pytest.mark.parametrize("thread", [{"type": "create"}, {"type": "continue", "previous_message_id": "msg_1"}])
async def test_only_a_pinned_expert_that_speaks_messages_can_hold_a_thread(thread: dict[str, str]) -> None:
    """Anthropic's SDKs recognise the refusal by `error_code` and send the whole conversation."""
    body = {"model": "auto", "max_tokens": 9, "messages": [{"role": "user", "content": "code"}], "thread": thread}
    experts = [
        {"name": name, "model": "m", "runtime": "external", "base_url": "http://127.0.0.1:9/v1", "apis": apis}
        for name, apis in (("coder", ["chat", "messages"]), ("painter", ["chat"]), ("generalist", ["messages"]))
    ]
    async with gateway_of(registry_of(experts=experts), coder=(ANSWERS["/v1/messages"],)) as gateway:
        routed, translated, pinned, unthreaded = [
            await gateway.post("/v1/messages", orjson.dumps(body | changed))
            for changed in ({}, {"model": "painter"}, {"model": "coder"}, {"thread": None})
        ]
    assert routed.status == translated.status == 400
    details = [response.json["error"]["details"] for response in (routed, translated)]
    assert details == [{"error_code": "thread_unsupported_request"}] * 2
    assert pinned.status == unthreaded.status == 200


async def test_with_keys_no_thread_reaches_a_server_that_would_store_it_for_all_callers() -> None:
    body = {"model": "coder", "max_tokens": 9, "messages": [{"role": "user", "content": "code"}]}
    expert = {"name": "coder", "model": "m", "runtime": "external", "base_url": "http://127.0.0.1:9/v1"}
    headers, keys = {"x-api-key": "alice", "content-type": "application/json"}, [key_of("alice").model_dump()]
    registry = registry_of(experts=[expert | {"apis": ["messages"]}], assignment={}, access={"keys": keys})
    async with gateway_of(registry, coder=(ANSWERS["/v1/messages"],)) as gateway:
        plain, threaded = [
            await gateway.post("/v1/messages", orjson.dumps(body | more), headers=headers)
            for more in ({}, {"thread": {"type": "continue", "previous_message_id": "msg_1"}})
        ]
    assert (plain.status, threaded.status) == (200, 400)
    assert threaded.json["error"]["details"] == {"error_code": "thread_unsupported_request"}


async def test_aliases_share_cached_answers_with_their_target_and_no_others() -> None:
    answer = (b'{"choices":[{"message":{"content":"x"},"finish_reason":"stop"}]}',)
    scripts = dict.fromkeys(("coder", "painter", "generalist"), answer)
    async with gateway_of(declared(cache={"when": "always"}), **scripts) as gateway:
        found = [
            (await send_chat(gateway, "/v1/chat/completions", model)).headers["x-coe-cache"]
            for model in ("gpt-4", "painter", "gpt-5", "auto", "coe/best", "coe/fast", "my-coder")
        ]
    assert found == ["miss", "hit", "miss", "hit", "hit", "miss", "miss"]


async def test_the_list_has_points_and_aliases_in_the_forms_of_openai_and_anthropic() -> None:
    async with gateway_of(declared()) as gateway:
        page = (await gateway.post("/v1/models", method="GET")).json
        one = (await gateway.post("/v1/models/coe/fast", method="GET")).json
        pattern = (await gateway.post("/v1/models/claude-opus-4-8", method="GET")).json
        anthropic = await gateway.post("/v1/models/nope", method="GET", headers={"anthropic-version": "2023-06-01"})
    models = {model["id"]: model for model in page["data"]}
    assert list(models) == ["auto", "coe/fast", "coe/best", "coder", "painter", "generalist", "gpt-4", "my-coder"]
    assert (page["object"], page["has_more"], page["first_id"], page["last_id"]) == ("list", False, "auto", "my-coder")
    assert (models["gpt-4"]["root"], models["gpt-4"]["display_name"]) == ("painter", "gpt-4 (painter)")
    assert (models["auto"]["context_length"], models["my-coder"]["context_length"]) == (32000, 1000)
    assert one == models["coe/fast"]
    assert (pattern["id"], pattern["root"], pattern["type"], pattern["object"]) == (
        "claude-opus-4-8",
        "auto",
        "model",
        "model",
    )
    assert pattern["created_at"] == "1970-01-01T00:00:00Z"  # the test has no file
    assert anthropic.json["error"]["type"] == "not_found_error"
