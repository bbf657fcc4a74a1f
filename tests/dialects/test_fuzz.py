"""Fuzzing of bodies and streams: the result is an answer or the documented error, never another exception."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import orjson
from hypothesis import example, given
from hypothesis import strategies as st

from coe.core import Chat
from coe.errors import InvalidRequest
from coe.experts.api_formats import API_FORMATS
from coe.experts.http import sse
from gateway.access.allowance import input_tokens, output_tokens
from gateway.dialects.chat import CHAT, COMPLETIONS, EMBEDDINGS
from gateway.dialects.messages import MESSAGES
from gateway.dialects.responses import RESPONSES

DIALECTS = (CHAT, COMPLETIONS, EMBEDDINGS, MESSAGES, RESPONSES)
_NAMES = (
    "model messages input prompt system instructions role content type text tools functions response_format format "
    "output_config output_format stream output background conversation previous_response_id source tool_choice"
)
_WORDS = (
    "auto user assistant system tool text image image_url input_text input_audio tool_result tool_use message "
    "function_call_output json_schema"
)
NAMES, WORDS = _NAMES.split(), _WORDS.split()

leaves = (
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
) | (st.text(max_size=20) | st.sampled_from(WORDS))
values = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=8), inner, max_size=5)
    ),
    max_leaves=30,
)
bodies = st.fixed_dictionaries({"model": st.just("auto") | leaves}, optional=dict.fromkeys(NAMES[1:], values))


def are_read_or_refused(body: bytes) -> None:
    """By every dialect."""
    for dialect in DIALECTS:
        refusal = None
        try:
            found = dialect.parse(body)
        except InvalidRequest as error:
            refusal = error
        if refusal is not None:
            assert orjson.loads(dialect.error_body(refusal))["error"]["message"] == str(refusal)
            assert dialect.error_event(refusal).endswith(b"\n\n")
        else:
            assert isinstance(found, Chat)
            assert isinstance(found.characters, int)
            assert all(isinstance(message.text, str) for message in found.messages)
            with suppress(InvalidRequest):  # orjson reads deeper nesting than it writes
                assert input_tokens(found) >= 0
                assert output_tokens(found) >= 0


@given(body=st.binary(max_size=200))
@example(body=b"[" * 100_000)
@example(body=b'{"a":' * 100_000)
@example(body=b'{"model":"\xff"}')
@example(body=b'{"model":"\\ud800"}')
def test_any_bytes_are_read_or_refused(body: bytes) -> None:
    are_read_or_refused(body)


@given(body=bodies)
def test_any_json_is_read_or_refused(body: Any) -> None:
    are_read_or_refused(orjson.dumps(body))


def test_parts_within_parts_within_parts_are_not_followed() -> None:
    deep: Any = "x"
    for _ in range(120):
        deep = [{"type": "tool_result", "role": "user", "content": deep, "output": None}]
    are_read_or_refused(orjson.dumps({"model": "auto", "messages": deep, "input": deep, "prompt": deep}))


lines = st.sampled_from(
    [
        b"data: {}",
        b"data: [DONE]",
        b'data: {"error":{"message":"x"}}',
        b'data: {"choices":[{"finish_reason":"stop"}],"usage":{"prompt_tokens":1}}',
        b'data: {"type":"message_delta","usage":5}',
        b'data: {"type":"response.completed","response":[]}',
        b'data: {"type":["error"]}',
        b'data: {"usage":{"prompt_tokens":"x"},"error":false}',
        b"data: nonsense",
        b"data:",
        b"event: error",
        b": comment",
        b"",
        b"\xff\x00",
    ]
)
streams = st.lists(lines | st.binary(max_size=12), max_size=12).flatmap(
    lambda parts: st.sampled_from([b"\n", b"\r\n", b"\r", b"\n\n"]).map(lambda end: end.join(parts))
)


@given(stream=streams, data=st.data())
def test_any_cut_of_any_stream_gives_the_same_events(stream: bytes, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    buffer, whole = sse.EventBuffer(), sse.EventBuffer()
    chunks = [buffer.feed(stream[start:end]) for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert b"".join(chunks) + buffer.rest == stream.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    blank = b"\n"  # a third line end in a row belongs to neither event
    assert b"".join(chunks).strip(blank) == whole.feed(stream).strip(blank)
    assert buffer.rest.strip(blank) == whole.rest.strip(blank)
    assert all(chunk.endswith(b"\n\n") for chunk in chunks if chunk)


@given(stream=streams)
def test_any_events_are_read_or_a_value_error(stream: bytes) -> None:
    for wire in API_FORMATS.values():
        assert isinstance(wire.done(stream), bool)
        assert isinstance(wire.finished(stream), bool)
        wire.failure(stream)
        list(wire.usages(stream))
        with suppress(ValueError):
            sse.first_event(stream, preamble=wire.preamble)
