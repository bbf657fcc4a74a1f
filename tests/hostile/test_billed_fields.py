"""Everything that an expert bills is counted: numbers written as text, tools, tool calls, images, files and audio."""

from typing import Any

import orjson
import pytest

from gateway.access.allowance import TOKENS_PER_FILE, input_tokens, output_tokens
from gateway.dialects import Dialect
from gateway.dialects.chat import CHAT, COMPLETIONS, EMBEDDINGS
from gateway.dialects.messages import MESSAGES
from gateway.dialects.responses import RESPONSES
from tests.access.samples import key_of
from tests.fakes import gateway_of, registry_of
from tests.gateway.two_keys import bearer

pytestmark = pytest.mark.anyio

HI = [{"role": "user", "content": "hi"}]
PATHS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": HI},
    "/v1/completions": {"prompt": "hi"},
    "/v1/responses": {"input": "hi"},
    "/v1/messages": {"messages": HI, "max_tokens": 5},
}
WRONG: tuple[Any, ...] = ("64", "", True, False, -1, 1.5, 1e300, [64], {"value": 64})


@pytest.mark.parametrize("path", PATHS)
async def test_a_number_that_multiplies_the_bill_and_is_none_is_refused_by_name(path: str) -> None:
    async with gateway_of() as gateway:
        for name in ("n", "best_of", "max_tokens", "max_completion_tokens", "max_output_tokens"):
            for value in WRONG:
                refused = await gateway.post(path, orjson.dumps({"model": "auto", **PATHS[path], name: value}))
                assert refused.status == 400, (name, value)
                if path == "/v1/messages":
                    assert name in refused.json["error"]["message"]
                else:
                    assert (refused.error["type"], refused.error["param"]) == ("invalid_request_error", name)
        assert not [call for expert in gateway.experts.values() for call in expert.calls]


@pytest.mark.parametrize("fields", [{"n": 0}, {"best_of": 0}, {"stream_options": "usage"}, {"stream_options": []}])
async def test_other_values_that_no_server_should_see_are_refused_by_name(fields: dict[str, Any]) -> None:
    async with gateway_of() as gateway:
        refused = await gateway.chat(**fields)
    assert (refused.status, refused.error["param"]) == (400, next(iter(fields)))


DATA = "QUJD" * 50_000
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "a" * 4000}}
TOOLS = [{"type": "function", "function": {"name": "f", "description": "d" * 4000}}]
SCHEMA = {"type": "json_schema", "json_schema": {"name": "s", "schema": {"description": "d" * 4000}}}


def user(*parts: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"role": "user", "content": list(parts)}]


@pytest.mark.parametrize(
    ("dialect", "fields", "least"),
    [
        (CHAT, {"messages": HI, "tools": TOOLS}, 1000),
        (CHAT, {"messages": HI, "functions": [TOOLS[0]["function"]]}, 1000),
        (CHAT, {"messages": HI, "response_format": SCHEMA}, 1000),
        (CHAT, {"messages": HI, "prediction": {"type": "content", "content": "p" * 4000}}, 1000),
        (CHAT, {"messages": [*HI, {"role": "assistant", "content": None, "tool_calls": [CALL]}]}, 1000),
        (CHAT, {"messages": [*HI, {"role": "assistant", "function_call": CALL["function"]}]}, 1000),
        (CHAT, {"messages": [*HI, {"role": "assistant", "content": "", "reasoning_content": "r" * 4000}]}, 1000),
        (CHAT, {"messages": user({"type": "image_url", "image_url": {"url": "http://x/y.png"}})}, TOKENS_PER_FILE),
        (CHAT, {"messages": user({"type": "image_url", "image_url": {"url": DATA}})}, TOKENS_PER_FILE),
        (CHAT, {"messages": user({"type": "file", "file": {"file_id": "f"}})}, TOKENS_PER_FILE),
        (CHAT, {"messages": user({"type": "file", "file": {"file_data": DATA}})}, 2 * TOKENS_PER_FILE),
        (CHAT, {"messages": user({"type": "input_audio", "input_audio": {"data": DATA, "format": "mp3"}})}, 100),
        (COMPLETIONS, {"prompt": "hi", "suffix": "s" * 4000}, 1000),
        (EMBEDDINGS, {"input": ["e" * 4000, "e" * 4000]}, 2000),
        (RESPONSES, {"input": "hi", "tools": [{"type": "function", "name": "f", "description": "d" * 4000}]}, 1000),
        (RESPONSES, {"input": "hi", "text": {"format": SCHEMA}}, 1000),
        (RESPONSES, {"input": [{"type": "function_call", "name": "f", "arguments": "a" * 4000}]}, 1000),
        (RESPONSES, {"input": [{"type": "function_call_output", "call_id": "c", "output": "o" * 4000}]}, 1000),
        (RESPONSES, {"input": user({"type": "input_image", "image_url": DATA})}, TOKENS_PER_FILE),
        (RESPONSES, {"input": user({"type": "input_file", "file_data": DATA})}, 2 * TOKENS_PER_FILE),
        (RESPONSES, {"input": [{"type": "image_generation_call", "result": DATA}]}, TOKENS_PER_FILE),
        (
            RESPONSES,
            {"input": [{"type": "computer_call_output", "output": {"type": "computer_screenshot", "image_url": DATA}}]},
            TOKENS_PER_FILE,
        ),
        (MESSAGES, {"messages": HI, "tools": [{"name": "f", "description": "d" * 4000}]}, 1000),
        (MESSAGES, {"messages": HI, "output_config": {"format": SCHEMA}}, 1000),
        (MESSAGES, {"messages": user({"type": "tool_use", "id": "t", "input": {"x": "i" * 4000}})}, 1000),
        (MESSAGES, {"messages": user({"type": "image", "source": {"type": "base64", "data": DATA}})}, TOKENS_PER_FILE),
        (
            MESSAGES,
            {"messages": user({"type": "document", "source": {"type": "base64", "data": DATA}})},
            2 * TOKENS_PER_FILE,
        ),
    ],
)
def test_what_a_model_reads_beside_text_is_counted_and_the_bytes_of_files_are_not(
    dialect: Dialect, fields: dict[str, Any], least: int
) -> None:
    found = input_tokens(dialect.parse(orjson.dumps({"model": "m", **fields})))
    assert least <= found <= 1.2 * least + 60


@pytest.mark.parametrize(
    ("dialect", "fields", "tokens"),
    [
        (CHAT, {"messages": HI, "max_tokens": 10, "n": 64}, 640),
        (COMPLETIONS, {"prompt": ["a", "b"], "max_tokens": 10, "best_of": 4, "n": 2}, 80),
        (RESPONSES, {"input": "hi", "max_output_tokens": 10}, 10),
        (MESSAGES, {"messages": HI, "max_tokens": 10}, 10),
        (EMBEDDINGS, {"input": "hi"}, 0),
    ],
)
def test_the_answers_that_a_request_asks_for_are_counted(dialect: Dialect, fields: dict[str, Any], tokens: int) -> None:
    assert output_tokens(dialect.parse(orjson.dumps({"model": "m", **fields}))) == tokens


async def test_tools_are_reserved_for_before_the_call() -> None:
    keys = [key_of(limits={"tokens_per_minute": 2000}).model_dump(mode="json")]
    body = {"model": "coder", "messages": HI, "max_tokens": 1, "tools": TOOLS * 2}
    async with gateway_of(registry_of(access={"keys": keys})) as gateway:
        refused = await gateway.post("/v1/chat/completions", orjson.dumps(body), headers=bearer("alice"))
    assert (refused.status, refused.error["code"]) == (400, "request_exceeds_limit")
