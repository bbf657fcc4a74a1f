"""Error mapping: refusals and error events of any shape become bounded messages."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coe.errors import ExpertError
from coe.experts.error_mapping import MAX_CHARACTERS, MAX_RETRY_AFTER, ErrorMapping, retry_after

JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["error", "message", "detail", "x"]), inner),
)


@pytest.mark.parametrize(
    ("reported", "seconds"),
    [
        ("7", 7.0),
        (" 0.5 ", 0.5),
        ("0", 0.0),
        ("86400", MAX_RETRY_AFTER),
        ("Thu, 01 Jan 1970 00:02:00 GMT", 20.0),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0.0),
        ("-1", None),
        ("soon", None),
        ("", None),
    ],
)
def test_retry_after_is_read_as_seconds_or_as_a_date(reported: str, seconds: float | None) -> None:
    assert retry_after(reported, now=100.0) == seconds


@given(st.integers(201, 599), st.binary() | JSON.map(lambda reported: repr(reported).encode()))
def test_every_refusal_message_is_one_bounded_line_without_the_key(status: int, body: bytes) -> None:
    error = ErrorMapping("clever", key="k3y").refusal(status, {}, b"k3y " + body, api="chat")
    assert isinstance(error, ExpertError)
    assert "k3y" not in str(error)
    assert len(str(error).splitlines()) == 1
    assert len(str(error)) < MAX_CHARACTERS + 100


@given(JSON)
def test_every_error_event_maps_to_an_error(reported: Any) -> None:
    assert str(ErrorMapping("clever", key="").server_error("failed", reported))
