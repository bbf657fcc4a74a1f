"""OpenAI's own client against the gateway: what applications do with it works unchanged."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import openai
import pytest
from pydantic import BaseModel

from tests.clients.gateway_server import KEY
from tests.clients.model_server import CITIES, REPLY, ModelServer

WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
HI: Any = [{"role": "user", "content": "hi"}]


class Person(BaseModel):
    name: str
    age: int


@pytest.fixture
def client(gateway: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{gateway}/v1", api_key=KEY, max_retries=0) as client:
        yield client


# ------------------------------------------------------------------------------------------------- chat completions

CHAT_EXPERTS = ("native", "claude")
"""By pass-through, and a provider through litellm."""


@pytest.mark.parametrize("model", ["auto", "chatty", "claude"])
def test_a_chat_is_answered(client: openai.OpenAI, model: str) -> None:
    answer = client.chat.completions.create(model=model, messages=HI)
    assert answer.choices[0].message.content == REPLY
    assert answer.model == ("native" if model == "auto" else model)
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (7, 5)


@pytest.mark.parametrize("model", CHAT_EXPERTS)
def test_a_chat_is_streamed_with_usage_if_requested(client: openai.OpenAI, model: str) -> None:
    with client.chat.completions.create(
        model=model, messages=HI, stream=True, stream_options={"include_usage": True}
    ) as stream:
        chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == REPLY
    assert {chunk.model for chunk in chunks} == {model}
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 5


def test_parallel_tool_calls_arrive_plain_and_streamed(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="native", messages=HI, tools=[WEATHER])
    calls = answer.choices[0].message.tool_calls
    assert calls is not None
    assert [call.function.arguments for call in calls] == [f'{{"city":"{city}"}}' for city in CITIES]  # type: ignore[union-attr]
    with client.chat.completions.stream(model="native", messages=HI, tools=[WEATHER]) as stream:
        streamed = stream.get_final_completion().choices[0].message.tool_calls
    assert streamed is not None
    assert [call.function.arguments for call in streamed] == [f'{{"city":"{city}"}}' for city in CITIES]


def test_a_provider_through_litellm_calls_tools(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="claude", messages=HI, tools=[WEATHER])
    calls = answer.choices[0].message.tool_calls
    assert calls is not None
    assert calls[0].function.name == "get_weather"  # type: ignore[union-attr]
    assert answer.choices[0].finish_reason == "tool_calls"
    with client.chat.completions.stream(model="claude", messages=HI, tools=[WEATHER]) as stream:
        streamed = stream.get_final_completion().choices[0].message.tool_calls
    assert streamed is not None
    assert streamed[0].function.arguments.replace(" ", "") == '{"city":"Paris"}'


def test_structured_output_is_parsed(client: openai.OpenAI) -> None:
    answer = client.chat.completions.parse(model="native", messages=HI, response_format=Person)
    assert answer.choices[0].message.parsed == Person(name="Ada", age=36)


def test_logprobs_choices_images_and_reasoning_pass_through(client: openai.OpenAI, upstream: ModelServer) -> None:
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    messages: Any = [{"role": "user", "content": [{"type": "text", "text": "think"}, picture]}]
    answer = client.chat.completions.create(model="native", messages=messages, n=2, logprobs=True)
    assert len(answer.choices) == 2
    assert answer.choices[1].logprobs is not None
    assert answer.choices[0].message.reasoning_content == "France, so Paris."  # type: ignore[attr-defined]
    assert upstream.seen[-1][1]["messages"] == messages
    with client.chat.completions.create(
        model="native", messages=[{"role": "user", "content": "think"}], n=2, stream=True
    ) as stream:
        deltas = [(chunk.choices[0].index, chunk.choices[0].delta) for chunk in stream]
    thoughts = [getattr(delta, "reasoning_content", None) or "" for index, delta in deltas if index == 1]
    assert "".join(thoughts) == "France, so Paris."


def test_unknown_fields_pass_in_both_directions(client: openai.OpenAI, upstream: ModelServer) -> None:
    vendor = {"top_k": 5, "ü": [1, None, {"deep": 0.1}]}
    answer = client.chat.completions.create(model="native", messages=HI, extra_body={"vendor": vendor})
    assert answer.vendor == vendor  # type: ignore[attr-defined]
    response = client.responses.create(model="native", input="hi", extra_body={"vendor": vendor})
    assert response.vendor == vendor  # type: ignore[attr-defined]
    assert [body["vendor"] for _, body in upstream.seen[-2:]] == [vendor, vendor]
    assert [body["model"] for _, body in upstream.seen[-2:]] == ["/models/n", "/models/n"]


# ------------------------------------------------------------------------------------- responses, and the other two


@pytest.mark.parametrize("model", ["native", "chatty", "claude"])
def test_a_response_is_created_and_streamed(client: openai.OpenAI, model: str) -> None:
    response = client.responses.create(model=model, input="hi", instructions="be kind")
    assert response.output_text == REPLY
    assert response.model == model
    assert response.usage is not None
    assert (response.usage.input_tokens, response.usage.output_tokens) == (7, 5)
    with client.responses.create(model=model, input="hi", stream=True) as stream:
        events = list(stream)
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == REPLY
    last = events[-1]
    assert last.type == "response.completed"
    assert last.response.model == model
    assert last.response.usage is not None
    assert last.response.usage.output_tokens == 5


def test_a_translated_response_keeps_parallel_tool_calls_reasoning_and_a_schema(
    client: openai.OpenAI, upstream: ModelServer
) -> None:
    tool: Any = {"type": "function", **WEATHER["function"], "strict": False}
    response = client.responses.create(model="chatty", input="hi", tools=[tool])
    calls = [item for item in response.output if item.type == "function_call"]
    assert [call.arguments for call in calls] == [f'{{"city":"{city}"}}' for city in CITIES]
    with client.responses.stream(model="chatty", input="hi", tools=[tool]) as stream:
        streamed = [item for item in stream.get_final_response().output if item.type == "function_call"]
    assert [call.arguments for call in streamed] == [call.arguments for call in calls]
    outputs: Any = [
        {"role": "user", "content": "hi"},
        *(call.model_dump(exclude_none=True) for call in calls),
        *({"type": "function_call_output", "call_id": call.call_id, "output": "20"} for call in calls),
    ]
    assert client.responses.create(model="chatty", input=outputs, tools=[tool]).output_text == REPLY
    assert [message["role"] for message in upstream.seen[-1][1]["messages"]] == ["user", "assistant", "tool", "tool"]
    thought = client.responses.create(model="chatty", input="think")
    assert [item.type for item in thought.output] == ["reasoning", "message"]
    parsed = client.responses.parse(model="chatty", input="hi", text_format=Person)
    assert parsed.output_parsed == Person(name="Ada", age=36)


@pytest.mark.parametrize("model", ["auto", "native", "chatty", "claude"])
def test_a_response_is_continued_read_and_deleted(client: openai.OpenAI, upstream: ModelServer, model: str) -> None:
    first = client.responses.create(model=model, input="hi")
    second = client.responses.create(model=model, input="go on", previous_response_id=first.id)
    assert (second.output_text, second.previous_response_id) == (REPLY, first.id)
    path, body = upstream.seen[-1]
    conversation = body.get("input") or body["messages"]
    assert (len(conversation), "previous_response_id" in body) == (3, False)
    assert path == ("/v1/responses" if model in ("auto", "native") else "/v1/messages" if model == "claude" else path)
    assert client.responses.retrieve(first.id).output_text == REPLY
    item: Any = {"type": "item_reference", "id": first.output[0].id}
    client.responses.create(model=model, input=[{"role": "user", "content": "hi"}, item])
    client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(first.id)


def test_legacy_completions_are_answered_by_experts_that_speak_them(client: openai.OpenAI) -> None:
    assert client.completions.create(model="auto", prompt="The capital").choices[0].text == REPLY
    with client.completions.create(model="native", prompt="The capital", stream=True) as stream:
        assert "".join(chunk.choices[0].text for chunk in stream) == REPLY
    with pytest.raises(openai.BadRequestError, match="chatty does not support the completions API"):
        client.completions.create(model="chatty", prompt="The capital")


def test_embeddings_come_from_the_expert_that_declares_them(client: openai.OpenAI) -> None:
    answer = client.embeddings.create(model="auto", input=["a", "abc"], encoding_format="float")
    assert [item.embedding for item in answer.data] == [[1.0, 0.5], [3.0, 0.5]]
    assert answer.model == "native"


# ------------------------------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize("model", CHAT_EXPERTS)
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (400, openai.BadRequestError),
        (429, openai.RateLimitError),
        (500, openai.InternalServerError),
        (401, openai.InternalServerError),
    ],
)
def test_an_experts_refusal_is_the_clients_own_exception(
    client: openai.OpenAI, model: str, stream: bool, fault: int, error: type[openai.APIStatusError]
) -> None:
    messages: Any = [{"role": "user", "content": f"please fail {fault}"}]
    with pytest.raises(error) as raised:
        client.chat.completions.create(model=f"{model}-{fault}", messages=messages, stream=stream)
    assert "sk-" not in str(raised.value)
    if fault == 429:
        assert 1 <= int(raised.value.response.headers["retry-after"]) <= 7


def test_the_gateways_own_refusals_are_the_clients_own_exceptions(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="gpt-9", messages=HI)
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as wrong:
        client.chat.completions.create(model="auto", messages=[])
    assert wrong.value.param == "messages"
    with pytest.raises(openai.AuthenticationError) as unknown:
        client.with_options(api_key="sk-unknown").chat.completions.create(model="auto", messages=HI)
    assert unknown.value.code == "invalid_api_key"


def test_fixed_model_names_work_in_every_api_and_models_are_listed(client: openai.OpenAI) -> None:
    hi: Any = [{"role": "user", "content": "hi"}]
    for model in ("gpt-5.1", "coe/best", "claude-opus-4-8"):
        chat = client.chat.completions.create(model=model, messages=hi)
        assert (chat.choices[0].message.content, chat.model) == (REPLY, "native")
        assert client.responses.create(model=model, input="hi").output_text == REPLY
        assert client.completions.create(model=model, prompt="hi").choices[0].text
    models = {model.id: model for model in client.models.list()}
    assert {"auto", "coe/best", "native", "my-claude"} <= models.keys()
    assert not any("*" in name for name in models)
    assert client.models.retrieve("my-claude").id == "my-claude"
    with pytest.raises(openai.NotFoundError, match="aliases"):
        client.chat.completions.create(model="mistral", messages=hi)
