"""The dialects at their endpoints: which expert is called, and errors in the form of each API."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from coe.errors import ExpertUnavailable, InvalidRequest
from coe.registry import Registry
from gateway.access.access import Caller
from gateway.request.body import read_head
from gateway.request.head import MAX_VERSION_CHARACTERS, read_options
from tests.fakes import gateway_of, registry_of

pytestmark = pytest.mark.anyio

PATHS = {
    "/v1/responses": {"input": "hi"},
    "/v1/messages": {"messages": [{"role": "user", "content": "hi"}]},
    "/v1/completions": {"prompt": "hi"},
    "/v1/embeddings": {"input": "hi"},
}

CODE = [{"role": "user", "content": "code"}]


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


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/messages"])
async def test_a_stream_that_breaks_ends_with_the_apis_own_error_event(path: str) -> None:
    script = (b'event: first\ndata: {"type":"first"}\n\n', ExpertUnavailable("broke off", expert="generalist"))
    async with gateway_of(speaking(), generalist=script) as gateway:
        response = await gateway.post(path, body(path, stream=True, model="generalist"))
    assert response.chunks[0] == script[0]
    name, data = response.chunks[-1].removesuffix(b"\n\n").split(b"\n")
    event_body = orjson.loads(data.removeprefix(b"data: "))
    assert name == b"event: error"
    assert event_body["type"] == "error"
    assert event_body.get("message", event_body.get("error", {}).get("message")) == "broke off"
    assert "sequence_number" in event_body or path == "/v1/messages"


VERSIONS = {"anthropic-version": "2099-01-01", "anthropic-beta": "context-1m-2025-08-07,other-2025-01-01"}
JSON = {"content-type": "application/json"}


async def test_anthropic_version_headers_reach_every_called_expert_and_no_other_header_does() -> None:
    sent = JSON | VERSIONS | {"anthropic-other": "x", "cookie": "x", "x-api-key": "x", "traceparent": "00-1"}
    async with gateway_of(coder=ExpertUnavailable("gone", expert="coder")) as gateway:
        response = await gateway.post("/v1/messages", body("/v1/messages", messages=CODE), headers=sent)
    assert response.headers["x-coe-attempts"] == "2"
    assert response.headers["x-coe-expert"] != "coder"
    asked = [call for expert in gateway.experts.values() for call in expert.calls]
    assert [call.headers for call in asked] == [VERSIONS | {"traceparent": "00-1"}] * 2


@pytest.mark.parametrize("path", [path for path in PATHS if path != "/v1/messages"])
async def test_requests_of_other_apis_mean_no_version_of_anthropics(path: str) -> None:
    async with gateway_of(speaking("embedder")) as gateway:
        response = await gateway.post(path, body(path), headers=JSON | VERSIONS | {"anthropic-beta": "é" * 5000})
    assert response.status == 200
    (call,) = gateway.experts[response.headers["x-coe-expert"]].calls
    assert call.headers == {}


@pytest.mark.parametrize("name", VERSIONS)
@pytest.mark.parametrize("value", ["b" * (MAX_VERSION_CHARACTERS + 1), "é", "a\tb", "a\r\nx-evil: b"])
async def test_a_version_that_no_server_should_see_is_refused_as_anthropic_would(name: str, value: str) -> None:
    async with gateway_of(speaking()) as gateway:
        response = await gateway.post("/v1/messages", body("/v1/messages"), headers=JSON | {name: value})
        assert not [expert for expert in gateway.experts.values() if expert.calls]
    assert (response.status, response.json["error"]["type"]) == (400, "invalid_request_error")
    assert response.json["error"]["message"].startswith(f"{name} must be at most {MAX_VERSION_CHARACTERS}")


def test_betas_in_several_lines_are_one_list_under_one_bound() -> None:
    policy = speaking().policy
    lines = [(b"anthropic-beta", b"one"), (b"anthropic-beta", b""), (b"anthropic-beta", b"two,three")]
    options = read_options(read_head({"headers": lines}), policy, caller=Caller(), api="messages")
    assert options.version_headers == {"anthropic-beta": "one,two,three"}
    with pytest.raises(InvalidRequest):
        read_options(
            read_head({"headers": [(b"anthropic-beta", b"b" * 100)] * 21}), policy, caller=Caller(), api="messages"
        )
