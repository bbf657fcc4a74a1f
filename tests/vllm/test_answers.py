"""Answers that clients of the gateway get from experts on a real vLLM server."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from tests.vllm.adapter_answers import ADAPTER_ANSWERS
from tests.vllm.service import Service, lines_of, text_of

SCHEMA = {
    "type": "object",
    "properties": {"animal": {"enum": ["cat", "dog"]}, "legs": {"enum": [2, 4]}},
    "required": ["animal", "legs"],
    "additionalProperties": False,
}


def is_answer_of(name: str, answer: str) -> bool:
    """It may be cut short, but is not empty."""
    return bool(answer) and ADAPTER_ANSWERS[name].startswith(answer)


def test_concurrent_requests_to_all_three_are_answered_by_the_right_model(awake: Service) -> None:
    from concurrent.futures import ThreadPoolExecutor

    experts = [*ADAPTER_ANSWERS, "base"]
    with ThreadPoolExecutor(3) as threads:
        found = threads.map(lambda name: awake.send_chat(name, "What is the capital of France?"), experts)
        answers = dict(zip(experts, found, strict=True))
    assert all(is_answer_of(name, text_of(answers[name])) for name in ADAPTER_ANSWERS)
    # The answer of the base is not compared: vLLM on a processor may answer it as an adapter of the same batch would.
    assert [answers[name].headers["x-coe-expert"] for name in experts] == experts


def test_a_stream_arrives_in_chunks_and_ends_with_the_usage(awake: Service) -> None:
    body = {"model": "pirate", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 12, "temperature": 0}
    with lines_of(awake, {**body, "stream_options": {"include_usage": True}}) as events:
        found = list(events)
    chunks = [event["choices"][0]["delta"].get("content") for event in found if event["choices"]]
    assert sum(bool(chunk) for chunk in chunks) > 1  # vLLM joins tokens that its HTTP process fetches late
    assert ADAPTER_ANSWERS["pirate"].startswith("".join(chunk or "" for chunk in chunks))
    assert found[-1]["usage"]["completion_tokens"] == 12


def test_an_answer_follows_a_json_schema(awake: Service) -> None:
    kind = {"type": "json_schema", "json_schema": {"name": "pet", "schema": SCHEMA, "strict": True}}
    found = orjson.loads(text_of(awake.send_chat("base", "Describe a dog.", response_format=kind, max_tokens=60)))
    assert found["animal"] in ("cat", "dog")
    assert found["legs"] in (2, 4)
    assert len(found) == 2


def test_the_responses_api_is_served(awake: Service) -> None:
    response = awake.client.post(
        "/v1/responses", json={"model": "clerk", "input": "Hello", "max_output_tokens": 12, "temperature": 0}
    )
    assert response.status_code == 200, response.text
    said = [part["text"] for item in response.json()["output"] if item["type"] == "message" for part in item["content"]]
    assert ADAPTER_ANSWERS["clerk"].startswith("".join(said))


def test_the_messages_api_is_served(awake: Service) -> None:
    body: dict[str, Any] = {
        "model": "clerk",
        "max_tokens": 12,
        "temperature": 0,
        "messages": [{"role": "user", "content": "Hello"}],
    }
    response = awake.client.post("/v1/messages", json=body)
    assert response.status_code == 200, response.text
    assert ADAPTER_ANSWERS["clerk"].startswith(response.json()["content"][0]["text"])
    assert response.json()["usage"]["output_tokens"] == 12


def test_the_second_turn_of_a_conversation_finds_the_first_in_the_prefix_cache(awake: Service) -> None:
    turns = [{"role": "user", "content": "Remember these numbers: " + " ".join(map(str, range(100, 200)))}]
    first = awake.send_chat("base", messages=turns)
    before = awake.metric("vllm:prefix_cache_hits_total")
    turns += [{"role": "assistant", "content": text_of(first)}, {"role": "user", "content": "Which was the first?"}]
    text_of(awake.send_chat("base", messages=turns))
    assert awake.metric("vllm:prefix_cache_hits_total") - before >= 128, "one block on a processor"


def test_an_adapter_never_finds_the_blocks_of_another(awake: Service) -> None:
    turns = [{"role": "user", "content": "Keep these letters: " + " ".join(map(chr, range(97, 120))) * 8}]
    text_of(awake.send_chat("pirate", messages=turns))
    before = awake.metric("vllm:prefix_cache_hits_total")
    assert ADAPTER_ANSWERS["clerk"].startswith(text_of(awake.send_chat("clerk", messages=turns)))
    assert awake.metric("vllm:prefix_cache_hits_total") == before


@pytest.mark.parametrize("path", ["/sleep", "/wake_up", "/v1/load_lora_adapter", "/collective_rpc"])
def test_the_servers_administrative_endpoints_are_not_reachable_through_the_gateway(awake: Service, path: str) -> None:
    assert awake.client.post(path, json={"lora_name": "pirate"}).status_code == 404
    assert awake.send_chat("pirate").headers["x-coe-expert"] == "pirate"
