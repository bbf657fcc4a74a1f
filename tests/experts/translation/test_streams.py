"""Responses and Messages for a server that speaks chat only: the translated request and the translated stream."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from coe.core import Call
from coe.errors import ExpertError, ExpertUnavailable
from coe.experts.http.client import Client
from coe.experts.http.expert import HttpExpert
from coe.experts.translation.expert import TranslatedExpert
from coe.registry import ExpertSpec
from coe.settings import Endpoint
from tests.experts.faulty_server import CHUNK, DONE, LAST, FaultyServer

pytestmark = pytest.mark.anyio
APIS = ("messages", "responses")
ROLE = b'data: {"choices":[{"delta":{"role":"assistant","content":""},"finish_reason":null}]}\n\n'
PROMPTS: dict[str, dict[str, Any]] = {
    "messages": {"messages": [{"role": "user", "content": "hi"}]},
    "responses": {"input": "hi"},
}


async def chunks(server: FaultyServer, api: Any, model: str, *, stream: bool = True, **fields: Any) -> list[bytes]:
    """The answer of a server that behaves as the model's name says."""
    declared = {"name": "clever", "model": model, "runtime": "external", "base_url": server.url}
    spec = ExpertSpec.model_validate(declared)
    async with Client() as session:
        expert = TranslatedExpert(HttpExpert(spec, Endpoint(server.url, model), session=session), spec)
        reply = await expert.stream(
            Call({"model": "auto", "stream": stream, **PROMPTS[api], **fields}, stream, 60, 60, api)
        )
        try:
            return [chunk async for chunk in reply.chunks()]
        finally:
            await reply.aclose()


async def streamed(server: FaultyServer, api: Any, *sent: bytes, **fields: Any) -> list[dict[str, Any]]:
    """The events that these chunks of a chat stream become."""
    answer = b"".join(await chunks(server, api, f"stream-text:{b''.join(sent).decode()}", **fields))
    return [orjson.loads(line[6:]) for line in answer.splitlines() if line.startswith(b"data: {")]


@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize(
    ("model", "says"),
    [
        ("text:<html>please log in</html>", "event stream"),
        ('text:{"error":{"message":"no quota","code":"quota"}}', "answered with an error: no quota"),
        ("stream-text:", "ended the stream before the first event"),
    ],
)
async def test_a_stream_without_content_is_broken_and_not_an_empty_answer(
    server: FaultyServer, api: str, model: str, says: str
) -> None:
    with pytest.raises(ExpertError, match=says) as caught:
        await chunks(server, api, model)
    assert caught.value.unhealthy


@pytest.mark.parametrize("api", APIS)
async def test_an_error_in_place_of_a_plain_response_makes_the_server_unhealthy(server: FaultyServer, api: str) -> None:
    with pytest.raises(ExpertUnavailable, match="no quota") as refused:
        await chunks(server, api, 'text:{"error":{"message":"no quota","code":"insufficient_quota"}}', stream=False)
    assert refused.value.unhealthy


@pytest.mark.parametrize("opening", [ROLE, b""])
@pytest.mark.parametrize(("api", "last"), [("messages", "message_stop"), ("responses", "response.completed")])
async def test_an_empty_response_with_token_counts_is_an_answer(
    server: FaultyServer, api: str, last: str, opening: bytes
) -> None:
    assert [event["type"] for event in await streamed(server, api, opening, LAST, DONE)][-1] == last


@pytest.mark.parametrize(
    ("api", "said"), [("messages", b'"type":"thinking"'), ("responses", b'"type":"reasoning"')], ids=APIS
)
async def test_the_first_content_is_relayed_at_once_even_if_it_is_reasoning(
    server: FaultyServer, api: Any, said: bytes
) -> None:
    thought = b'data: {"choices":[{"delta":{"reasoning_content":"Hm."},"finish_reason":null}]}\n\n'
    first, *_ = await chunks(server, api, f"stream-text:{(ROLE + thought + CHUNK % b'm' + LAST + DONE).decode()}")
    assert said in first.partition(b'"hi"')[0]
    first, *rest = await chunks(server, api, "no-done")
    assert b'"hi"' in first
    assert rest
