"""Encoder passes: when a request may wait for one, by a clock that the test sets, and which results are kept."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from coe.core import UNDETERMINED, Prediction
from coe.routing import encoder_passes
from coe.routing.encoder_passes import (
    BUSY_RATIO,
    ENCODER_BACKOFF_FACTOR,
    MAX_BACKOFF_SECONDS,
    MAX_ENCODER_PASSES,
    SLOW_ENCODER_PASS_SECONDS,
    SLOW_MULTILINGUAL_PASS_SECONDS,
    EncoderPasses,
    LoadShedding,
)
from tests.fakes import WordRouter
from tests.waiting import ManualClock


def test_the_number_of_concurrent_encoder_passes_is_limited() -> None:
    load_shedding = LoadShedding(clock=ManualClock())
    with ExitStack() as passes:
        for _ in range(MAX_ENCODER_PASSES):
            assert load_shedding.has_capacity
            passes.enter_context(load_shedding.encoder_pass())
        assert not load_shedding.has_capacity
    assert load_shedding.has_capacity


def test_after_a_slow_pass_passes_are_skipped_for_a_multiple_of_its_duration() -> None:
    clock = ManualClock()
    load_shedding = LoadShedding(clock=clock)
    with load_shedding.encoder_pass():
        clock.now += 2 * SLOW_ENCODER_PASS_SECONDS
    assert not load_shedding.has_capacity
    clock.now += 2 * SLOW_ENCODER_PASS_SECONDS * ENCODER_BACKOFF_FACTOR - 0.001
    assert not load_shedding.has_capacity
    clock.now += 0.002
    assert load_shedding.has_capacity


def test_the_first_pass_which_loads_an_encoder_stops_passes_for_a_bounded_time() -> None:
    clock = ManualClock()
    load_shedding = LoadShedding(slow=SLOW_MULTILINGUAL_PASS_SECONDS, clock=clock)
    with load_shedding.encoder_pass():
        clock.now += SLOW_MULTILINGUAL_PASS_SECONDS / 2
    assert load_shedding.has_capacity
    with load_shedding.encoder_pass():
        clock.now += 60
    assert not load_shedding.has_capacity
    clock.now += MAX_BACKOFF_SECONDS
    assert load_shedding.has_capacity


@pytest.mark.parametrize(("waited", "has_capacity"), [(BUSY_RATIO - 1.01, True), (BUSY_RATIO - 0.99, False)])
def test_a_long_pass_is_slow_only_if_it_mostly_waited(waited: float, has_capacity: bool) -> None:
    """A long text on a slow processor takes longer than the limit on an idle machine too."""
    clock, own = ManualClock(), 4 * SLOW_ENCODER_PASS_SECONDS
    load_shedding = LoadShedding(clock=clock)
    with load_shedding.encoder_pass() as one:
        clock.now += (1 + waited) * own
        one.processor_seconds = own
    assert load_shedding.has_capacity == has_capacity


def test_a_failed_pass_is_no_longer_counted() -> None:
    load_shedding = LoadShedding(clock=ManualClock())
    for _ in range(MAX_ENCODER_PASSES + 1):
        with pytest.raises(ValueError, match="x"), load_shedding.encoder_pass():
            raise ValueError("x")
    assert load_shedding.has_capacity


@pytest.mark.anyio
async def test_results_of_the_latest_encoder_passes_are_kept_whatever_the_white_space_around_the_text(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(encoder_passes, "MAX_CACHED_RESULTS", 2)
    monkeypatch.setattr(encoder_passes, "LoadShedding", partial(LoadShedding, clock=ManualClock()))
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


class ComputingRouter(WordRouter):
    """Computes for longer than the limit of a pass."""

    def predict(self, texts: Sequence[str], *, embeddings: Any = None, encode: bool = False) -> list[Prediction]:
        end = time.thread_time() + 2 * SLOW_ENCODER_PASS_SECONDS
        while time.thread_time() < end:
            pass
        return super().predict(texts)


class WaitingRouter(WordRouter):
    """Waits for longer than the limit of a pass."""

    def predict(self, texts: Sequence[str], *, embeddings: Any = None, encode: bool = False) -> list[Prediction]:
        time.sleep(10 * SLOW_ENCODER_PASS_SECONDS)
        return super().predict(texts)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("router", "ratio", "skips"), [(ComputingRouter, 1000.0, False), (WaitingRouter, BUSY_RATIO, True)]
)
async def test_passes_are_skipped_after_one_that_waited_not_after_one_that_computed(
    router: type[WordRouter], ratio: float, skips: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoder_passes, "BUSY_RATIO", ratio)  # this machine may be busy
    monkeypatch.setattr(encoder_passes, "ENCODER_BACKOFF_FACTOR", 1000.0)
    monkeypatch.setattr(encoder_passes, "MAX_BACKOFF_SECONDS", 1000.0)
    with ThreadPoolExecutor(1) as threads:
        runner = EncoderPasses(router(), threads=threads, timeout=None)
        found = [await runner.predict(text, foreign=False) for text in ("ponder code", "ponder art")]
    assert [one is None for one in found] == [False, skips]


@pytest.mark.anyio
async def test_a_result_without_a_language_is_cached(monkeypatch: pytest.MonkeyPatch) -> None:
    """An absent multilingual stage stays absent, so another pass would find the same."""
    monkeypatch.setattr(encoder_passes, "LoadShedding", partial(LoadShedding, clock=ManualClock()))
    passes: list[str] = []

    class WithoutLanguage(WordRouter):
        def predict(self, texts: Sequence[str], *, embeddings: Any = None, encode: bool = False) -> list[Prediction]:
            passes.extend(texts)
            return [replace(found, language=UNDETERMINED) for found in super().predict(texts)]

    with ThreadPoolExecutor(1) as threads:
        runner = EncoderPasses(WithoutLanguage(), threads=threads, timeout=None)
        for _ in range(2):
            await runner.predict("ponder code", foreign=True)
    assert passes == ["ponder code"]
