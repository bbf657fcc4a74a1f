"""Event streams that are valid but unusual, and responses that are not quite what was requested."""

from typing import Any

import pytest

from coe.core import Api
from coe.errors import ExpertInvalidResponse, ExpertUnavailable
from coe.experts.api_formats import API_FORMATS
from coe.experts.error_mapping import ErrorMapping
from coe.experts.http.client import Response
from coe.experts.http.replies import HeldAnswer, ModelNameRewriter, StreamedReply, read_json
from coe.usage import Usage
from tests.experts.faulty_server import CHUNK, DONE, LAST

pytestmark = pytest.mark.anyio
FIRST = CHUNK % b"m"
NAMED = CHUNK % b"clever"
AZURE = b'data: {"id":"","model":"","choices":[],"prompt_filter_results":[]}\n\n'
TOKENS = b'data: {"choices":[],"usage":{"prompt_tokens":2,"completion_tokens":4}}\n\n'
EMPTY = b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\n'
HELLO = b'data: {"type":"message_start","message":{"usage":{"input_tokens":%d,"output_tokens":0}}}\n\n'
CALM = b'data: {"type":"message_delta","delta":{"stop_reason":"end_turn"}}\n\n'
BYE = b'data: {"type":"message_stop"}\n\n'
CREATED = b'data: {"type":"response.created","response":{}}\n\n'
WHOLE = b'data: {"type":"response.%b","response":{"output":[]}}\n\n'
UNSURE = b'data: {"choices":[{"delta":{"content":"x"},"logprobs":{"content":[{"logprob":-Infinity}]}}]}\n\n'


class Chunks(Response):
    """A response that arrives in these chunks."""

    media_type = ""

    def __init__(self, *chunks: bytes, media_type: str = "text/event-stream") -> None:
        self._chunks = list(chunks)
        self.media_type = media_type

    async def chunk(self, within: float | None = None) -> bytes:
        return self._chunks.pop(0) if self._chunks else b""

    @property
    def complete(self) -> bool:
        return not self._chunks

    def release(self) -> None: ...

    def close(self) -> None: ...


def streamed(*chunks: bytes, api: Api = "chat", has_one_choice: bool = True) -> StreamedReply:
    answer: Any = Chunks(*chunks)
    rewriter, errors = ModelNameRewriter(server_name="m", client_name="clever"), ErrorMapping("clever", key="")
    return StreamedReply(
        answer,
        api_format=API_FORMATS[api],
        errors=errors,
        rewriter=rewriter,
        stream_idle_timeout=5.0,
        usage=Usage(),
        held=HeldAnswer(None),
        hides_usage=False,
        has_one_choice=has_one_choice,
    )


async def plain(*chunks: bytes, api: Api = "chat") -> bytes:
    reply = await read_json(
        Chunks(*chunks, media_type="application/json"),
        api_format=API_FORMATS[api],
        errors=ErrorMapping("clever", key=""),
        rewriter=ModelNameRewriter(server_name="m", client_name="clever"),
        usage=Usage(),
        held=HeldAnswer(None),
    )
    return b"".join([chunk async for chunk in reply.chunks()])


async def relayed(reply: StreamedReply) -> bytes:
    await reply.begin()
    body = b"".join([chunk async for chunk in reply.chunks()])
    await reply.aclose()
    return body


def cut(whole: bytes) -> list[bytes]:
    return [whole[at : at + 5] for at in range(0, len(whole), 5)]


async def test_a_stream_that_breaks_off_with_an_empty_finish_reason_is_incomplete() -> None:
    unfinished = FIRST.replace(b"null", b'""')
    with pytest.raises(ExpertUnavailable, match="before the answer was complete"):
        await relayed(streamed(unfinished, unfinished))
    assert await relayed(streamed(unfinished, LAST)) == unfinished.replace(b'"m"', b'"clever"') + LAST + DONE


async def test_of_several_choices_the_end_of_one_is_not_that_of_the_stream() -> None:
    with pytest.raises(ExpertUnavailable, match="before the answer was complete"):
        await relayed(streamed(FIRST, LAST, has_one_choice=False))
    assert (await relayed(streamed(FIRST, LAST, DONE, has_one_choice=False))).endswith(DONE)


@pytest.mark.parametrize("api", ["chat", "completions"])
async def test_a_server_that_dies_before_its_first_choice_raises_before_the_reply(api: Api) -> None:
    with pytest.raises(ExpertUnavailable, match="before the first event"):
        await streamed(AZURE, api=api).begin()
    with pytest.raises(ExpertUnavailable, match="no memory"):
        await streamed(AZURE, b'data: {"choices":[],"error":{"message":"no memory"}}\n\n', api=api).begin()
    assert await relayed(streamed(AZURE, FIRST, LAST + DONE, api=api)) == AZURE + NAMED + LAST + DONE


@pytest.mark.parametrize(
    ("api", "sent"),
    [
        ("chat", DONE),
        ("chat", b": ping\n\n" + DONE),
        ("chat", AZURE + DONE),
        ("chat", b'data: {"choices":null}\n\n' + DONE),
        ("chat", b'data: {"choices":[],"usage":{"prompt_tokens":0,"completion_tokens":0}}\n\n' + DONE),
        ("chat", b'data: {"choices":[],"usage":{"prompt_tokens":2}}\n\n' + DONE),
        ("completions", DONE),
        ("messages", BYE),
        ("messages", HELLO % 0 + BYE),
        ("messages", HELLO % 2 + BYE),
    ],
)
async def test_a_stream_that_ends_without_any_event_is_broken_and_not_an_empty_answer(api: Api, sent: bytes) -> None:
    for chunks in ([sent], cut(sent)):
        with pytest.raises(ExpertUnavailable, match="ended the stream before the first event") as caught:
            await streamed(*chunks, api=api).begin()
        assert caught.value.unhealthy


@pytest.mark.parametrize(
    ("api", "sent"),
    [
        ("chat", EMPTY + DONE),
        ("chat", AZURE + EMPTY + DONE),
        ("chat", AZURE + TOKENS + DONE),
        ("completions", EMPTY + DONE),
        ("responses", WHOLE % b"completed"),
        ("responses", CREATED + WHOLE % b"incomplete"),
        ("messages", HELLO % 0 + CALM + BYE),
    ],
)
async def test_an_empty_response_with_token_counts_is_an_answer(api: Api, sent: bytes) -> None:
    for chunks in ([sent], cut(sent)):
        assert await relayed(streamed(*chunks, api=api)) == sent


async def test_nan_and_infinity_are_relayed_unchanged() -> None:
    body = b'{"model": "m", "choices": [{"logprobs": [NaN, -Infinity]}], "usage": {"prompt_tokens": 2, "n": NaN}}'
    assert await plain(body[:20], body[20:]) == body.replace(b'"m"', b'"clever"')
    assert await relayed(streamed(UNSURE, LAST + DONE)) == UNSURE + LAST + DONE


@pytest.mark.parametrize("body", [b"NaN", b"[" * 100_000, b'{"choices": [NaN}', b"\xff\xfe{", b""])
async def test_unparsable_json_is_an_invalid_response(body: bytes) -> None:
    with pytest.raises(ExpertInvalidResponse):
        await plain(body)
