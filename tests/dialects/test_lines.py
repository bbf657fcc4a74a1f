"""The dialects at their endpoints: who is asked, and errors in each API's own shape."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from coe.errors import ExpertBusy, ExpertUnavailable
from coe.registry import Registry
from tests.fakes import gateway_of, registry_of

pytestmark = pytest.mark.anyio

PATHS = {
    "/v1/responses": {"input": "hi"},
    "/v1/messages": {"messages": [{"role": "user", "content": "hi"}]},
    "/v1/completions": {"prompt": "hi"},
    "/v1/embeddings": {"input": "hi"},
}


def speaking(*embedders: str) -> Registry:
    """The usual three, of which `generalist` speaks everything but embeddings and `embedders` those alone."""
    place = {"model": "m", "runtime": "external", "base_url": "http://127.0.0.1:9/v1"}
    most = ["chat", "responses", "messages", "completions"]
    chats = [{"name": "coder", **place}, {"name": "painter", **place}, {"name": "generalist", **place, "apis": most}]
    return registry_of(experts=[*chats, *({"name": name, **place, "apis": ["embeddings"]} for name in embedders)])


def body(path: str, **fields: Any) -> bytes:
    return orjson.dumps({"model": "auto", **PATHS[path], **fields})


@pytest.mark.parametrize("path", PATHS)
async def test_each_endpoint_asks_an_expert_in_its_api_and_records_it(path: str) -> None:
    async with gateway_of(speaking("embedder")) as gateway:
        response = await gateway.post(path, body(path, vendor=1))
    assert response.status == 200
    (record,) = gateway.records
    (call,) = gateway.experts[record.expert].calls
    assert path.endswith(call.api)
    assert record.api == call.api
    assert call.fields["vendor"] == 1
    assert record.expert == {"embeddings": "embedder"}.get(call.api, "generalist")


async def test_embeddings_cost_what_their_input_does_though_their_servers_count_no_output() -> None:
    place = {"model": "m", "runtime": "external", "base_url": "http://127.0.0.1:9/v1"}
    embedder = {"name": "embedder", "apis": ["embeddings"], "prices": {"input": 10, "output": 99}, **place}
    registry = registry_of(experts=[{"name": "generalist", **place}, embedder], assignment={"general": "generalist"})
    async with gateway_of(registry) as gateway:
        await gateway.post("/v1/embeddings", body("/v1/embeddings"))
    (reply,) = gateway.experts["embedder"].replies
    assert gateway.records[0].cost == pytest.approx(reply.usage.input_tokens * 10 / 1e6)


async def test_embeddings_are_never_routed_between_models() -> None:
    async with gateway_of(speaking("one", "other")) as gateway:
        auto = await gateway.post("/v1/embeddings", body("/v1/embeddings"))
        named = await gateway.post("/v1/embeddings", body("/v1/embeddings", model="other"))
        chatting = await gateway.chat("hi", model="other")
    assert auto.status == 400
    assert auto.error["code"] == "ambiguous_model"
    assert "one of one, other" in auto.error["message"]
    assert named.headers["x-coe-expert"] == "other"
    assert chatting.status == 400
    async with gateway_of(speaking()) as gateway:
        nobody = await gateway.post("/v1/embeddings", body("/v1/embeddings"))
    assert nobody.error["code"] == "no_capable_expert"


@pytest.mark.parametrize(
    ("given", "status", "kind"),
    [
        ({"messages": []}, 400, "invalid_request_error"),
        ({"model": "gpt-9"}, 404, "not_found_error"),
        ({}, 503, "overloaded_error"),
    ],
)
async def test_errors_of_messages_are_anthropics(given: dict[str, Any], status: int, kind: str) -> None:
    failing = ExpertUnavailable("gone", expert="any")
    scripts = dict.fromkeys(("coder", "painter", "generalist"), failing)
    async with gateway_of(speaking(), **scripts) as gateway:
        response = await gateway.post("/v1/messages", body("/v1/messages", **given))
    assert (response.status, response.json["type"]) == (status, "error")
    assert response.json["error"]["type"] == kind
    assert set(response.json["error"]) == {"type", "message"}


async def test_a_busy_expert_is_a_rate_limit_of_messages() -> None:
    busy = ExpertBusy("busy", expert="generalist")
    async with gateway_of(speaking(), generalist=busy) as gateway:
        response = await gateway.post("/v1/messages", body("/v1/messages", model="generalist"))
    assert (response.status, response.json["error"]["type"]) == (429, "rate_limit_error")


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/messages"])
async def test_a_stream_that_breaks_ends_with_the_apis_own_error_event(path: str) -> None:
    script = (b'event: first\ndata: {"type":"first"}\n\n', ExpertUnavailable("broke off", expert="generalist"))
    async with gateway_of(speaking(), generalist=script) as gateway:
        response = await gateway.post(path, body(path, stream=True, model="generalist"))
    assert response.pieces[0] == script[0]
    name, data = response.pieces[-1].removesuffix(b"\n\n").split(b"\n")
    told = orjson.loads(data.removeprefix(b"data: "))
    assert name == b"event: error"
    assert told["type"] == "error"
    assert told.get("message", told.get("error", {}).get("message")) == "broke off"
    assert "sequence_number" in told or path == "/v1/messages"
