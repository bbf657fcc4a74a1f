"""The scan that counts a body's values before it is parsed."""

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coe.errors import InvalidRequest
from gateway.request.body import CONTAINER_WEIGHT, SCAN_WINDOW, JsonScan

TEXT = st.text(st.sampled_from('ab"\\{}[],:\n\u00e9\u4e2d\U0001f600'), max_size=20)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | TEXT,
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(TEXT, inner, max_size=6),
    max_leaves=40,
)


def scanned(*chunks: bytes, max_values: int = 10**9) -> JsonScan:
    scan = JsonScan(max_values=max_values)
    for chunk in chunks:
        scan.feed(chunk)
    return scan


def weight(value: Any) -> tuple[int, int]:
    """Containers and their members, as the scan is to count at least and at most (which adds strings)."""
    if isinstance(value, dict):
        parts = [weight(one) for pair in value.items() for one in pair]
        separators = max(0, len(value) - 1)
    elif isinstance(value, list):
        parts = [weight(one) for one in value]
        separators = max(0, len(value) - 1)
    else:
        return 0, int(isinstance(value, str))
    least = CONTAINER_WEIGHT + separators + sum(low for low, _ in parts)
    return least, CONTAINER_WEIGHT + separators + sum(high for _, high in parts)


@given(JSON, st.data())
def test_a_scan_counts_the_structure_and_no_content_of_strings_however_the_text_is_cut(
    value: Any, data: st.DataObject
) -> None:
    text = orjson.dumps(value)
    least, most = weight(value)
    assert scanned(text).values == most
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    chunks = [text[low:high] for low, high in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert least <= scanned(*chunks).values <= most


@given(st.binary(max_size=200))
def test_any_bytes_are_scanned(data: bytes) -> None:
    assert scanned(data, data).size == 2 * len(data)


def test_a_scan_ends_as_soon_as_there_are_too_many_values() -> None:
    scan = JsonScan(max_values=1000)
    with pytest.raises(InvalidRequest, match="more than 1000 JSON values"):
        scan.feed(b"{}," * 10_000_000)
    assert scan.size <= SCAN_WINDOW
