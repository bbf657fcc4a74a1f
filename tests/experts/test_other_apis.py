"""HttpExpert in the APIs other than chat, against a real server."""

from typing import Any

import pytest

from coe.core import Api, Call
from coe.errors import ExpertError, ExpertUnavailable
from coe.experts.http.client import Client
from coe.experts.http.expert import HttpExpert
from coe.registry import ExpertSpec
from coe.settings import Endpoint
from tests.experts.faulty_server import FaultyServer
from tests.experts.other_apis import SAMPLES

pytestmark = pytest.mark.anyio
STREAMING = ("completions", "responses", "messages")


async def send_chat(
    server: FaultyServer, api: Api, model: str = "good", *, stream: bool = False, trace: Any = None, **more: Any
) -> tuple[bytes, tuple[int | None, int | None]]:
    """The whole answer to one call, and its token counts."""
    spec = ExpertSpec.model_validate(
        {"name": "clever", "model": "m", "runtime": "external", "base_url": server.url, **more.pop("spec", {})}
    )
    async with Client() as session:
        expert = HttpExpert(spec, Endpoint(server.url, model), session=session)
        fields = {"model": "auto", **({"stream": True} if stream else {}), **more}
        reply = await expert.stream(Call(fields, stream, 5, 5, api=api, headers=trace or {}))
        try:
            chunks = [chunk async for chunk in reply.chunks()]
        finally:
            await reply.aclose()
    return b"".join(chunks), (reply.usage.input_tokens, reply.usage.output_tokens)


@pytest.mark.parametrize("api", SAMPLES)
async def test_a_plain_answer_carries_the_experts_name_and_its_tokens(server: FaultyServer, api: Api) -> None:
    body, tokens = await send_chat(server, api, input="hi")
    assert b'"clever"' in body
    assert tokens == (2, 4)
    assert server.seen == [{"model": "good", "input": "hi"}]


@pytest.mark.parametrize("api", STREAMING)
async def test_a_stream_is_relayed_with_the_experts_name_and_its_tokens(server: FaultyServer, api: Api) -> None:
    body, tokens = await send_chat(server, api, stream=True)
    expected = [event.replace('"M"', '"clever"') for event in SAMPLES[api].events]
    assert [line.removeprefix("data: ") for line in body.decode().split("\n") if line.startswith("data")] == expected
    assert tokens == (2, 4)


@pytest.mark.parametrize("api", STREAMING)
async def test_a_stream_that_fails_or_ends_early_raises(server: FaultyServer, api: Api) -> None:
    with pytest.raises(ExpertUnavailable, match=r"cuda died"):
        await send_chat(server, api, "late", stream=True)
    with pytest.raises(ExpertUnavailable, match="before the answer was complete"):
        await send_chat(server, api, "cut", stream=True)


async def test_each_api_receives_the_system_prompt_in_its_own_field(server: FaultyServer) -> None:
    reported = {"spec": {"system_prompt": "Be kind."}}
    await send_chat(server, "responses", **reported)
    await send_chat(server, "responses", instructions="And short.", **reported)
    await send_chat(server, "messages", **reported)
    await send_chat(server, "messages", system="And short.", **reported)
    await send_chat(server, "messages", system=[{"type": "text", "text": "And short."}], **reported)
    await send_chat(server, "completions", **reported)
    places = [body.get("instructions", body.get("system")) for body in server.seen]
    kind = {"type": "text", "text": "Be kind."}
    assert places == [
        "Be kind.",
        "Be kind.\n\nAnd short.",
        "Be kind.",
        "Be kind.\n\nAnd short.",
        [kind, {"type": "text", "text": "And short."}],
        None,
    ]


async def test_declared_parameters_use_the_names_of_the_api_and_skip_embeddings(server: FaultyServer) -> None:
    reported = {"spec": {"parameters": {"max_tokens": 9, "temperature": 0.5}}}
    for api in ("responses", "messages", "embeddings"):
        await send_chat(server, api, **reported)  # type: ignore[arg-type]
    assert server.seen == [
        {"model": "good", "max_output_tokens": 9, "temperature": 0.5},
        {"model": "good", "max_tokens": 9, "temperature": 0.5},
        {"model": "good"},
    ]


async def test_a_request_limit_replaces_the_declared_one_under_any_name(
    server: FaultyServer,
) -> None:
    reported = {"spec": {"parameters": {"max_tokens": 9, "temperature": 0.5}}}
    await send_chat(server, "completions", max_completion_tokens=5, **reported)
    await send_chat(server, "completions", max_completion_tokens=None, **reported)
    assert [(body.get("max_tokens"), body["temperature"]) for body in server.seen] == [(None, 0.5), (9, 0.5)]


async def test_anthropic_headers_reach_messages_and_trace_headers_reach_all_apis(
    server: FaultyServer,
) -> None:
    for api in ("messages", "responses"):
        trace = {"traceparent": "00-1", "authorization": "Bearer wrong"}
        await send_chat(server, api, trace=trace, spec={"api_key": "k3y"})  # type: ignore[arg-type]
    messages, responses = ({name.lower(): value for name, value in sent.items()} for sent in server.headers)
    assert (messages["x-api-key"], messages["anthropic-version"]) == ("k3y", "2023-06-01")
    assert "x-api-key" not in responses
    assert [(h["traceparent"], h["authorization"]) for h in (messages, responses)] == [("00-1", "Bearer k3y")] * 2


async def test_the_clients_version_header_replaces_the_default_and_its_betas_are_forwarded(
    server: FaultyServer,
) -> None:
    await send_chat(server, "messages", trace={"anthropic-version": "2099-01-01", "anthropic-beta": "one,two"})
    await send_chat(server, "messages", trace={"anthropic-beta": "one"})
    reported = [{name.lower(): value for name, value in sent.items()} for sent in server.headers]
    versions = [(sent["anthropic-version"], sent["anthropic-beta"]) for sent in reported]
    assert versions == [("2099-01-01", "one,two"), ("2023-06-01", "one")]


async def test_a_missing_api_does_not_make_the_server_unhealthy(server: FaultyServer) -> None:
    with pytest.raises(ExpertError) as raised:
        await send_chat(server, "messages", "status:404")
    assert raised.value.retryable
    assert not raised.value.unhealthy
