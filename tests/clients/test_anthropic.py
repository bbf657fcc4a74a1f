"""Anthropic's own client against the gateway."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import anthropic
import pytest

from tests.clients.gateway_server import KEY
from tests.clients.model_server import CITIES, REPLY, ModelServer

WEATHER: Any = {
    "name": "get_weather",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}},
}
HI: Any = [{"role": "user", "content": "hi"}]
EXPERTS = ("native", "chatty", "claude")
"""By pass-through, by translation, and a provider through litellm."""


@pytest.fixture
def client(gateway: str) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=gateway, api_key=KEY, max_retries=0) as client:
        yield client


def words(message: anthropic.types.Message) -> str:
    return "".join(block.text for block in message.content if block.type == "text")


@pytest.mark.parametrize("model", EXPERTS)
def test_a_message_is_answered(client: anthropic.Anthropic, model: str) -> None:
    message = client.messages.create(model=model, max_tokens=50, system="be kind", messages=HI)
    assert words(message) == REPLY
    assert (message.model, message.stop_reason) == (model, "end_turn")
    assert (message.usage.input_tokens, message.usage.output_tokens) == (7, 5)


@pytest.mark.parametrize("model", EXPERTS)
def test_a_message_is_streamed(client: anthropic.Anthropic, model: str) -> None:
    with client.messages.stream(model=model, max_tokens=50, messages=HI) as stream:
        text = "".join(stream.text_stream)
        message = stream.get_final_message()
    assert text == words(message) == REPLY
    assert message.model == model
    assert message.usage.output_tokens == 5


@pytest.mark.parametrize(("model", "cities"), [("native", CITIES[:1]), ("chatty", CITIES), ("claude", CITIES[:1])])
def test_tools_are_called_and_answered(client: anthropic.Anthropic, model: str, cities: tuple[str, ...]) -> None:
    message = client.messages.create(model=model, max_tokens=50, messages=HI, tools=[WEATHER])
    calls = [block for block in message.content if block.type == "tool_use"]
    assert [call.input for call in calls] == [{"city": city} for city in cities]
    assert message.stop_reason == "tool_use"
    with client.messages.stream(model=model, max_tokens=50, messages=HI, tools=[WEATHER]) as stream:
        streamed = [block for block in stream.get_final_message().content if block.type == "tool_use"]
    assert [call.input for call in streamed] == [call.input for call in calls]


@pytest.mark.parametrize("kind", ["auto", "any"])
def test_disabled_parallel_tool_use_is_translated_to_chat(
    client: anthropic.Anthropic, upstream: ModelServer, kind: Any
) -> None:
    choice: Any = {"type": kind, "disable_parallel_tool_use": True}
    message = client.messages.create(model="chatty", max_tokens=50, messages=HI, tools=[WEATHER], tool_choice=choice)
    assert [block.input for block in message.content if block.type == "tool_use"] == [{"city": CITIES[0]}]
    client.messages.create(model="chatty", max_tokens=50, messages=HI, tools=[WEATHER], tool_choice={"type": kind})
    assert "parallel_tool_calls" not in upstream.seen[-1][1]


def test_unknown_fields_pass_in_both_directions(client: anthropic.Anthropic, upstream: ModelServer) -> None:
    vendor = {"top_k": 5, "deep": [1, None]}
    message = client.messages.create(model="native", max_tokens=50, messages=HI, extra_body={"vendor": vendor})
    assert message.vendor == vendor  # type: ignore[attr-defined]
    path, body = upstream.seen[-1]
    assert (path, body["vendor"], body["max_tokens"]) == ("/v1/messages", vendor, 50)


BETAS = ["context-1m-2025-08-07", "interleaved-thinking-2025-05-14", "of-tomorrow-2099-01-01"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("model", "known"), [("native", BETAS), ("chatty", []), ("claude", [])])
def test_beta_headers_reach_servers_that_speak_messages_and_no_other_header_does(
    client: anthropic.Anthropic, upstream: ModelServer, model: str, known: list[str], stream: bool
) -> None:
    """The models of a provider, as litellm lists them."""
    asked: Any = {"model": model, "max_tokens": 50, "messages": HI, "betas": BETAS, "extra_headers": {"x-own": "1"}}
    if stream:
        with client.beta.messages.stream(**asked) as events:
            events.until_done()
    else:
        client.beta.messages.create(**asked)
    sent = {name.lower(): value for name, value in upstream.headers[-1].items()}
    assert sorted(filter(None, sent.get("anthropic-beta", "").split(","))) == sorted(known)
    means = {"native": client.default_headers["anthropic-version"], "claude": "2023-06-01"}
    assert sent.get("anthropic-version") == means.get(model)
    assert "x-own" not in sent
    assert KEY not in str(sent)


@pytest.mark.parametrize("model", EXPERTS)
@pytest.mark.parametrize(
    ("fault", "error", "kind"),
    [
        (400, anthropic.BadRequestError, "invalid_request_error"),
        (429, anthropic.RateLimitError, "rate_limit_error"),
        (500, anthropic.InternalServerError, "overloaded_error"),
    ],
)
def test_an_experts_refusal_is_the_clients_own_exception(
    client: anthropic.Anthropic, model: str, fault: int, error: type[anthropic.APIStatusError], kind: str
) -> None:
    messages: Any = [{"role": "user", "content": f"please fail {fault}"}]
    with pytest.raises(error) as raised:
        client.messages.create(model=f"{model}-{fault}", max_tokens=50, messages=messages)
    assert raised.value.body["error"]["type"] == kind  # type: ignore[index, call-overload]


def test_a_missing_resource_is_an_anthropic_error(client: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError) as missing:
        client.messages.batches.list()
    assert missing.value.body["error"]["type"] == "not_found_error"  # type: ignore[index, call-overload]


def test_the_gateways_own_refusals_are_anthropics_errors(client: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError) as missing:
        client.messages.create(model="claude-9", max_tokens=50, messages=HI)
    assert missing.value.body["error"]["type"] == "not_found_error"  # type: ignore[index, call-overload]
    with pytest.raises(anthropic.AuthenticationError) as unknown:
        client.with_options(api_key="sk-unknown").messages.create(model="auto", max_tokens=50, messages=HI)
    assert unknown.value.body["error"]["type"] == "authentication_error"  # type: ignore[index, call-overload]


def test_fixed_model_names_work_and_models_are_listed(client: anthropic.Anthropic) -> None:
    message = client.messages.create(model="claude-opus-4-8", max_tokens=50, messages=HI)
    assert (words(message), message.model) == (REPLY, "native")
    models = {model.id: model for model in client.models.list(limit=3)}
    assert list(models)[:4] == ["auto", "coe/best", "native", "chatty"]
    assert models["my-claude"].display_name == "my-claude (claude)"
    assert models["auto"].created_at.tzinfo is not None
    assert client.models.retrieve("claude-opus-5").type == "model"
    assert client.models.retrieve("coe/best").display_name == "coe/best (automatic routing)"
    with pytest.raises(anthropic.NotFoundError) as raised:
        client.models.retrieve("mistral")
    body: Any = raised.value.body
    assert body["error"]["type"] == "not_found_error"
