"""JSON text that orjson refuses is read and written as well."""

import math

import orjson
import pytest

from coe import json_text

ODD = b'{"a":[NaN,-Infinity],"b":"\\ud800","c":123456789012345678901}'


def test_json_that_orjson_refuses_is_read_and_written_unchanged() -> None:
    read = json_text.loads(ODD)
    assert (math.isnan(read["a"][0]), read["a"][1], read["b"]) == (True, -math.inf, "\ud800")
    assert json_text.dumps_with_nan(read) == ODD


@pytest.mark.parametrize("text", [b"", b"{", b"NaN,", b"[" * 100_000, b"\xff"])
def test_invalid_json_is_refused(text: bytes) -> None:
    with pytest.raises(orjson.JSONDecodeError):
        json_text.loads(text)


def test_deep_nesting_is_written_up_to_a_recursion_error() -> None:
    deep: list[object] = []
    for _ in range(500):
        deep = [deep]
    assert json_text.dumps(deep) == b"[" * 501 + b"]" * 501
    for _ in range(200_000):
        deep = [deep]
    with pytest.raises(RecursionError):
        json_text.dumps(deep)
