"""The kernel classifies the units of every message that the project has as its reference in NumPy does."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from ruamel.yaml import YAML

from coe.routing.message_parts import MAX_REMEMBERED_BYTES, MessageParts, SplitMessages, split_message, take_blocks
from coe.routing.units import class_probabilities, reading_model, reference_probabilities, units_of

ROOT = Path(__file__).parent.parent
FILES = sorted(file for folder in ("benchmarks", "scripts") for file in (ROOT / folder).glob("*.*l"))
"""Templates, agents, languages and passages, in YAML and JSONL."""
UNUSUAL = (
    "\0",
    "[1] x",
    "(2) \U0001d400bc",
    "İstanbul'da?”",
    "a" * 9000 + ":",
    "Question:\n" * 400,
    "日本語：「質問」ですか？ " * 60,
)


def texts_in(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    else:
        for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
            yield from texts_in(item)


def rows_of(file: Path) -> Any:
    if file.suffix == ".jsonl":
        return [orjson.loads(line) for line in file.read_bytes().splitlines()]
    return YAML(typ="safe").load(file)


@pytest.mark.skipif(reading_model().kernel is None, reason="this installation has no compiled kernel")
def test_the_kernel_equals_its_reference() -> None:
    texts = [*itertools.chain.from_iterable(texts_in(rows_of(file)) for file in FILES), *UNUSUAL]
    assert len(texts) > 3000
    for text in texts:
        if units := units_of(take_blocks(text, MessageParts(""))):
            for ours, expected in zip(class_probabilities(units), reference_probabilities(units), strict=True):
                assert ours == pytest.approx(expected, abs=1e-9), text


def test_a_lone_surrogate_is_read_by_the_reference() -> None:
    units = units_of("Question: \ud800?\nAnswer:")
    assert class_probabilities(units) == reference_probabilities(units)


def test_the_parts_of_earlier_messages_take_bounded_memory() -> None:
    memory = SplitMessages()
    for number in range(500):
        for text in (f"{number} " * 4000, f"<document>{number * 'x' * 1000}</document>\nSummarise it"):
            assert memory.split(text) == memory.split(text) == split_message(text)
            assert memory.size <= MAX_REMEMBERED_BYTES
