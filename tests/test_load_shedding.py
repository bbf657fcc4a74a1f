"""Encoder passes: when a request may wait for one, by a clock that the test sets, and which results are kept."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest

from coe.core import Prediction
from coe.routing import classifier
from coe.routing.classifier import (
    BUSY_RATIO,
    ENCODER_BACKOFF_FACTOR,
    MAX_ENCODER_PASSES,
    SLOW_ENCODER_PASS_SECONDS,
    EncoderPasses,
    LoadShedding,
)
from tests.fakes import WordRouter
from tests.waiting import ManualClock


def test_the_number_of_concurrent_encoder_passes_is_limited() -> None:
    load_shedding = LoadShedding(clock=ManualClock())
    for _ in range(MAX_ENCODER_PASSES):
        assert load_shedding.has_capacity
        start = load_shedding.begin()
    assert not load_shedding.has_capacity
    load_shedding.end(start, 0.0)
    assert load_shedding.has_capacity


def test_after_a_slow_pass_passes_are_skipped_for_a_multiple_of_its_duration() -> None:
    clock = ManualClock()
    load_shedding = LoadShedding(clock=clock)
    start = load_shedding.begin()
    clock.now += 2 * SLOW_ENCODER_PASS_SECONDS
    load_shedding.end(start, 0.0)
    assert not load_shedding.has_capacity
    clock.now += 2 * SLOW_ENCODER_PASS_SECONDS * ENCODER_BACKOFF_FACTOR - 0.001
    assert not load_shedding.has_capacity
    clock.now += 0.002
    assert load_shedding.has_capacity


@pytest.mark.parametrize(("waited", "has_capacity"), [(BUSY_RATIO - 1.01, True), (BUSY_RATIO - 0.99, False)])
def test_a_long_pass_is_slow_only_if_it_mostly_waited(waited: float, has_capacity: bool) -> None:
    """A long text on a slow processor takes longer than the limit on an idle machine too."""
    clock, own = ManualClock(), 4 * SLOW_ENCODER_PASS_SECONDS
    load_shedding = LoadShedding(clock=clock)
    start = load_shedding.begin()
    clock.now += (1 + waited) * own
    load_shedding.end(start, own)
    assert load_shedding.has_capacity == has_capacity


@pytest.mark.anyio
async def test_results_of_the_latest_encoder_passes_are_kept_whatever_the_white_space_around_the_text(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(classifier, "MAX_CACHED_RESULTS", 2)
    monkeypatch.setattr(classifier, "LoadShedding", partial(LoadShedding, clock=ManualClock()))
    passes: list[str] = []

    class CountingRouter(WordRouter):
        def predict(self, texts: Sequence[str], *, embeddings: Any = None, encode: bool = False) -> list[Prediction]:
            passes.extend(texts)
            return super().predict(texts)

    with ThreadPoolExecutor(1) as threads:
        runner = EncoderPasses(CountingRouter(), threads=threads, timeout=None)

        async def stage(text: str) -> str:
            found = await runner.predict(text, foreign=False)
            assert found is not None
            return found.stage

        assert [await stage(text) for text in ("\tponder code ", "ponder art", " ponder code\n")] == ["predict"] * 3
        assert passes == ["ponder code", "ponder art"]
        await stage("ponder general")  # in place of the art, which was used least recently
        assert [await stage(text) for text in ("ponder code", "ponder art")] == ["predict"] * 2
        assert passes[2:] == ["ponder general", "ponder art"]
