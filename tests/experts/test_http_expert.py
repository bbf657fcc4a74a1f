"""HttpExpert against a real server that misbehaves in every way."""

import orjson
import pytest

from coe.core import Call
from coe.errors import (
    ExpertRejected,
    ExpertUnavailable,
    InvalidRequest,
)
from coe.experts.http.client import Client
from coe.experts.http.expert import HttpExpert
from coe.experts.http.replies import ModelNameRewriter
from coe.registry import ExpertSpec
from coe.settings import Endpoint
from gateway.dialects import body_of
from tests.experts.faulty_server import FaultyServer

pytestmark = pytest.mark.anyio


def spec_of(**fields: object) -> ExpertSpec:
    declared = {"name": "clever", "model": "m", "runtime": "external", "base_url": "http://h/v1"}
    return ExpertSpec.model_validate(declared | fields)


async def answer(
    url: str, model: str, *, stream: bool = False, first: float = 5.0, chunk: float = 5.0, **spec: object
) -> list[bytes]:
    """All pieces of one answer."""
    fields = {"model": "auto", "messages": [{"role": "user", "content": "hi"}], **({"stream": True} if stream else {})}
    async with Client() as session:
        expert = HttpExpert(spec_of(**spec), Endpoint(url, model), session=session)
        reply = await expert.stream(Call(fields, stream, first, chunk))
        try:
            chunks = [chunk async for chunk in reply.chunks()]
        finally:
            await reply.aclose()
        assert (reply.usage.input_tokens, reply.usage.output_tokens) == (2, 4)
        return chunks


async def test_declared_parameters_fill_gaps_and_the_system_prompt_comes_first(server: FaultyServer) -> None:
    parameters = {"temperature": 0.1, "messages_seen": 1}
    await answer(server.url, "good", parameters=parameters, system_prompt="Be kind.", api_key="k3y")
    (body,) = server.seen
    assert body["temperature"] == 0.1
    assert [message["content"] for message in body["messages"]] == ["Be kind.", "hi"]
    assert server.headers[0]["Authorization"] == "Bearer k3y"


def test_only_the_model_field_of_the_response_is_renamed() -> None:
    rewriter = ModelNameRewriter(server_name="m", client_name="clever")
    answer = {"model": "m", "content": [{"type": "tool_use", "input": {"model": "m"}}]}
    assert orjson.loads(rewriter.in_answer(orjson.dumps(answer), answer)) == {**answer, "model": "clever"}
    foreign = answer | {"model": "another"}
    assert orjson.loads(rewriter.in_answer(orjson.dumps(foreign), foreign)) == foreign
    assert rewriter.in_answer(b'{"model": "m", "n": 1.0}', {}) == b'{"model": "clever", "n": 1.0}'


async def test_a_refusal_keeps_the_servers_message_code_and_param(server: FaultyServer) -> None:
    with pytest.raises(ExpertRejected, match=r"rejected the request: too long$") as raised:
        await answer(server.url, "refuses:slowly400")
    assert (raised.value.upstream_code, raised.value.param) == ("context_length_exceeded", "messages[0]")
    assert orjson.loads(body_of(raised.value))["error"]["code"] == "context_length_exceeded"
    with pytest.raises(ExpertRejected) as raised:
        await answer(server.url, "refuses:slowly400", api_key="context_length_exceeded")
    assert raised.value.upstream_code is None


async def test_the_key_is_redacted_even_if_the_server_repeats_it(server: FaultyServer) -> None:
    with pytest.raises(ExpertUnavailable, match=r"no: Bearer \*\*\*") as raised:
        await answer(server.url, "repeats", api_key="k3y")
    assert "k3y" not in str(raised.value)


async def test_a_body_nested_too_deeply_is_an_invalid_request(server: FaultyServer) -> None:
    deep: object = 1
    for _ in range(600):
        deep = [deep]
    async with Client() as session:
        expert = HttpExpert(spec_of(), Endpoint(server.url, "good"), session=session)
        with pytest.raises(InvalidRequest, match="nested too deeply"):
            await expert.stream(Call({"messages": [], "deep": deep}, False, 5, 5))
