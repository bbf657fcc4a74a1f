"""Capabilities that requests need, the experts that get them, and the messages of refusals."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from gateway.dialects import Dialect
from gateway.dialects.chat import CHAT, COMPLETIONS
from gateway.dialects.messages import MESSAGES
from gateway.dialects.responses import RESPONSES
from tests.fakes import gateway_of, registry_of

TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
LOCAL = {"model": "m", "runtime": "external", "base_url": "http://127.0.0.1:9/v1"}


def user(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": [{"type": "text", "text": "code"}, *parts]}]}


def pdf(media_type: str = "base64") -> dict[str, Any]:
    return {"type": "document", "source": {"type": media_type, "media_type": "application/pdf", "data": "JVBERi0="}}


HI = {"messages": [{"role": "user", "content": "code"}]}


@pytest.mark.parametrize(
    ("dialect", "fields", "needs"),
    [
        (CHAT, HI, set()),
        (CHAT, HI | {"n": 1, "logprobs": False, "top_logprobs": 0, "response_format": {"type": "text"}}, set()),
        (CHAT, HI | {"n": 2}, {"n"}),
        (CHAT, HI | {"logprobs": True, "top_logprobs": 2}, {"logprobs"}),
        (CHAT, HI | {"response_format": {"type": "json_object"}}, {"json_object"}),
        (CHAT, HI | {"response_format": {"type": "json_schema", "json_schema": {}}}, {"json_schema"}),
        (CHAT, user({"type": "file", "file": {"file_data": "data:application/pdf;base64,JVBERi0="}}), {"files"}),
        (CHAT, {"messages": [*HI["messages"], {"role": "tool", "tool_call_id": "c", "content": "4"}]}, {"tools"}),
        (
            MESSAGES,
            {"messages": [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c", "content": "4"}]}]},
            {"tools"},
        ),
        (RESPONSES, {"input": [{"type": "function_call_output", "call_id": "c", "output": "4"}]}, {"tools"}),
        (COMPLETIONS, {"prompt": "code", "echo": True, "logprobs": 0}, {"echo", "logprobs"}),
        (COMPLETIONS, {"prompt": "code", "best_of": 3, "echo": False}, {"n"}),
        (MESSAGES, user(pdf()), {"files"}),
        (MESSAGES, user(pdf("url")), {"files"}),
        (MESSAGES, user(pdf("text")), set()),
        (RESPONSES, {"input": "code", "text": {"format": {"type": "json_object"}}}, {"json_object"}),
        (RESPONSES, {"input": "code", "top_logprobs": 2}, {"logprobs"}),
        (RESPONSES, {"input": "code", "include": ["message.output_text.logprobs"]}, {"logprobs"}),
        (RESPONSES, {"input": "code", "include": ["reasoning.encrypted_content"]}, set()),
        (
            RESPONSES,
            {"input": [{"role": "user", "content": [{"type": "input_file", "file_data": "data:x"}]}]},
            {"files"},
        ),
    ],
)
def test_what_a_request_needs(dialect: Dialect, fields: dict[str, Any], needs: set[str]) -> None:
    assert dialect.parse(orjson.dumps({"model": "auto", **fields})).needs == needs


def declared(**capabilities: list[str]) -> Any:
    names = ("coder", "painter", "generalist")
    return registry_of(experts=[{"name": one, **LOCAL, "capabilities": capabilities.get(one, [])} for one in names])


OPTIONAL = {
    "n": {"n": 2},
    "logprobs": {"logprobs": True},
    "json_object": {"response_format": {"type": "json_object"}},
    "files": user({"type": "file", "file": {"file_id": "f"}}),
}


@pytest.mark.anyio
@pytest.mark.parametrize("need", OPTIONAL)
async def test_an_optional_capability_counts_once_an_expert_declares_it(need: str) -> None:
    async with gateway_of(declared()) as gateway:
        assert (await gateway.chat("code", **OPTIONAL[need])).headers["x-coe-expert"] == "coder"
        assert gateway.records[-1].needs == (need,)
    async with gateway_of(declared(painter=[need])) as gateway:
        assert (await gateway.chat("code", **OPTIONAL[need])).headers["x-coe-expert"] == "painter"
        assert gateway.records[-1].candidates == ("painter",)
        assert (await gateway.chat("code")).headers["x-coe-expert"] == "coder"
        pinned = await gateway.chat("code", model="coder", **OPTIONAL[need])
        assert (pinned.status, pinned.headers["x-coe-expert"]) == (200, "coder")


@pytest.mark.anyio
async def test_a_refusal_for_a_missing_capability_names_the_line_to_add() -> None:
    async with gateway_of(declared(coder=["images"], generalist=["audio"])) as gateway:
        routed = await gateway.chat("code", tools=[TOOL], n=2)
        pinned = await gateway.chat("code", model="coder", tools=[TOOL])
    assert (routed.status, routed.error["code"]) == (400, "no_capable_expert")
    assert routed.error["message"].endswith(
        "painter has no tools; generalist has no tools. If its model supports this, say so in experts.yaml: add "
        "`capabilities: [audio, tools]` to the expert 'generalist' or another"
    )
    assert pinned.error["message"] == (
        "coder has no tools. If its model supports this, say so in experts.yaml: add "
        "`capabilities: [images, tools]` to the expert 'coder'"
    )
