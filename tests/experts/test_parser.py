"""A connection reads the same of an HTTP/1.1 response however its bytes are cut. Invalid bytes are a
ProtocolError."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coe.experts.http.client import MAX_HEAD_BYTES, ProtocolError
from tests.experts.reading import Reading

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
COUNTED = HEAD + b"Content-Length: 11\r\n\r\nhello world"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n6;a=b\r\n world\r\n0\r\n\r\n"
TRAILED = CHUNKED[:-2] + b"Digest: x\r\n\r\n"
INFORMED = b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + COUNTED


@given(whole=st.sampled_from([COUNTED, CHUNKED, TRAILED, INFORMED]), cuts=st.lists(st.integers(1, 150), max_size=8))
def test_any_cut_of_the_bytes_parses_to_the_same_response(whole: bytes, cuts: list[int]) -> None:
    answer, body, at = Reading(), b"", 0
    for end in [*sorted({cut for cut in cuts if cut < len(whole)}), len(whole)]:
        body += answer.feed(whole[at:end])
        at = end
    assert (answer.status, body, answer.complete, answer.reusable) == (200, b"hello world", True, True)
    assert answer.headers["content-type"] == "text/event-stream"


@given(data=st.binary(max_size=300), before=st.sampled_from([b"", HEAD, CHUNKED[:-20]]))
def test_arbitrary_bytes_raise_nothing_but_a_protocol_error(data: bytes, before: bytes) -> None:
    answer = Reading()
    try:
        answer.feed(before)
        for at in range(len(data)):
            answer.feed(data[at : at + 1])
        answer.end()
    except ProtocolError:
        pass


@pytest.mark.parametrize("whole", [COUNTED, CHUNKED, TRAILED], ids=["counted", "chunked", "trailed"])
def test_a_connection_that_closes_early_is_an_error_at_any_byte(whole: bytes) -> None:
    for length in range(len(whole)):
        answer = Reading()
        answer.feed(whole[:length])
        with pytest.raises(ProtocolError):
            answer.end()


@pytest.mark.parametrize(
    ("head", "reusable"),
    [
        (b"HTTP/1.1 200 OK\r\n", True),
        (b"HTTP/1.1 200 OK\r\nConnection: close\r\n", False),
        (b"HTTP/1.0 200 OK\r\n", False),
        (b"HTTP/1.0 200 OK\r\nConnection: Keep-Alive\r\n", True),
    ],
)
def test_the_response_head_decides_whether_the_connection_is_reusable(head: bytes, reusable: bool) -> None:
    answer = Reading()
    answer.feed(head + b"content-length: 0\r\n\r\n")
    assert answer.complete
    assert answer.reusable is reusable


@pytest.mark.parametrize(
    "whole",
    [
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"HTTP/2 200 OK\r\n\r\n",
        b"HTTP/1.1 2x0 OK\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
        HEAD + b"no header\r\n\r\n",
        HEAD + b"content-length : 5\r\n\r\nhello",
        HEAD + b"content-length: -5\r\n\r\nhello",
        HEAD + b"content-length: 5\r\ncontent-length: 6\r\n\r\nhello",
        HEAD + b"content-length: 5\r\n\r\nhello!",
        HEAD + b"content-length: 0\r\n\r\nx",
        HEAD + b"transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        HEAD + b"transfer-encoding: chunked\r\n\r\nxyz\r\n",
        HEAD + b"transfer-encoding: chunked\r\n\r\n-1\r\n",
        HEAD + b"transfer-encoding: chunked\r\n\r\n0x5\r\nhello\r\n",
        HEAD + b"transfer-encoding: chunked\r\n\r\n5\r\nhello!\r\n0\r\n\r\n",
        HEAD + b"transfer-encoding: chunked\r\n\r\n" + b"1" * 17 + b"\r\n",
        HEAD + b"transfer-encoding: chunked\r\n\r\n" + b"0" * MAX_HEAD_BYTES,
        HEAD + b"transfer-encoding: chunked\r\n\r\n5;" + b"x" * MAX_HEAD_BYTES,
        HEAD + b"transfer-encoding: chunked\r\n\r\n0\r\n" + b"a: b\r\n" * MAX_HEAD_BYTES,
        CHUNKED + b"x",
        b"HTTP/1.1 200 OK\r\nx: " + b"y" * MAX_HEAD_BYTES,
    ],
    ids=lambda whole: repr(whole[-24:]),
)
def test_an_invalid_response_is_an_error(whole: bytes) -> None:
    with pytest.raises(ProtocolError):
        Reading().feed(whole)
