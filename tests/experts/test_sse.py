"""Server-sent events: cutting a byte stream into events, and reading facts from them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coe.experts.api_formats import with_system_prompt
from coe.experts.http.sse import EventBuffer, before, done, error, finished, first_event, usage


@given(
    st.lists(st.sampled_from(["data: {}", ": note", "event: x\ndata: 1", "data: ü\ndata: 2"])),
    st.sampled_from(["\n", "\r\n", "\r"]),
    st.data(),
)
def test_any_cut_of_the_bytes_gives_the_same_events(events: list[str], end: str, data: st.DataObject) -> None:
    whole = "".join(f"{event}\n\n" for event in events)
    sent = whole.replace("\n", end).encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(sent)), max_size=8)))
    buffer = EventBuffer()
    chunks = [buffer.feed(sent[start:end]) for start, end in zip([0, *cuts], [*cuts, len(sent)], strict=True)]
    assert b"".join(chunks) == whole.encode()
    assert all(chunk.endswith(b"\n\n") for chunk in chunks if chunk)
    assert buffer.rest == b""


def test_an_endless_event_is_bounded() -> None:
    buffer = EventBuffer(limit=10)
    with pytest.raises(ValueError, match="longer than 10 bytes"):
        buffer.feed(b"data: 123456789")
    buffer = EventBuffer(limit=10)
    buffer.feed(b"data: 1234")
    with pytest.raises(ValueError, match="longer than 10 bytes"):
        buffer.feed(b"5")


def test_errors_finishes_and_usage_are_read_from_events() -> None:
    last = b'data: {"choices":[{"finish_reason": "stop"}],"usage":{"prompt_tokens":1}}\n\n'
    assert finished(last)
    assert not finished(b'data: {"choices":[{"finish_reason":null}]}\n\n')
    assert usage(b"data: x\n\n" + last) == {"prompt_tokens": 1}
    assert usage(b'data: {"usage":null}\n\n') is None
    assert error(b'data: {"choices":[]}\n\ndata: {"error":{"message":"x"}}\n\n') == {"error": {"message": "x"}}
    assert error(b'data: {"choices":[{"delta":{"content":"an \\"error\\""}}],"error":null}\n\n') is None
    assert done(b"data: 1\n\ndata: [DONE]\n\n: bye\n\n")
    assert done(b"data:[DONE]\n\n")
    assert not done(b'data: {"content":"data: [DONE]"}\n\n')
    assert first_event(b": ping\ndata: [DONE]\n\n") is None


@pytest.mark.parametrize("blank", [b"\n\n", b"\r\n\r\n"])
def test_events_before_an_error_are_separated_from_it(blank: bytes) -> None:
    good = b'event: a\ndata: {"error":null}' + blank + b"data: 2" + blank
    bad = b'data: {"error":{"message":"x"}}' + blank
    assert before(error, good + bad + good) == good
    assert before(error, bad + good) == b""
    assert before(error, good) == good


@pytest.mark.parametrize(
    ("messages", "contents"),
    [
        ([{"role": "user", "content": "hi"}], ["P", "hi"]),
        ([{"role": "system", "content": "own"}, {"role": "user", "content": "hi"}], ["P\n\nown", "hi"]),
        ([{"role": "developer", "content": None}], ["P"]),
        (
            [{"role": "system", "content": [{"type": "text", "text": "own"}]}],
            [[{"type": "text", "text": "P"}, {"type": "text", "text": "own"}]],
        ),
    ],
)
def test_a_system_prompt_is_merged_with_the_clients_own(
    messages: list[dict[str, object]], contents: list[object]
) -> None:
    before = [dict(message) for message in messages]
    assert [message["content"] for message in with_system_prompt(messages, "P")] == contents
    assert messages == before
