"""Categories that a router was not trained on, and trained ones that are not declared.

The encoder of these tests is untrained and four words of six carry no information, so a few examples help less than
with a real encoder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import routers
from coe.core import FAST_UNCERTAIN, Router
from tests.routers.conftest import WORDS, sentences

Built = tuple[Path, dict[str, Any], list[Any]]
CHESS = ("openings, gambit and checkmate", *sentences("chess", count=8, seed=9))


def adapted(built: Built, *, without: str = "", chess: Sequence[str] = CHESS) -> Router:
    declared = {name: () for name in WORDS if name != without} | {"general": ()}
    return routers.load(built[0], declared=declared | ({"chess": chess} if chess else {}))


def share(router: Router, category: str, texts: Sequence[str]) -> float:
    return float(np.mean([router.categories[p.best] == category for p in router.predict(texts)]))


def test_prompts_of_a_new_category_reach_it_and_the_others_stay(built: Built) -> None:
    router = adapted(built)
    assert router.categories == (*WORDS, "general", "chess")
    assert share(router, "chess", sentences("chess", count=30, seed=10)) > 0.6
    for name in WORDS:
        assert share(router, name, sentences(name, count=30, seed=10)) > 0.75


def test_texts_near_a_new_category_are_in_distribution_and_escalated(built: Built) -> None:
    base, router = routers.load(built[0]), adapted(built)
    for text in CHESS:
        assert router.predict_fast(text).stage == FAST_UNCERTAIN
        (before,), (after,) = base.predict([text]), router.predict([text])
        assert after.in_distribution > before.in_distribution


def test_a_category_no_longer_declared_counts_as_general(built: Built) -> None:
    router = adapted(built, without="football", chess=())
    assert router.categories == ("cooking", "astronomy", "general")
    assert share(router, "general", sentences("football", count=30, seed=11)) > 0.9
    assert share(router, "cooking", sentences("cooking", count=30, seed=11)) > 0.9


def test_a_dropped_category_does_not_compete_with_a_new_one_of_the_same_kind(built: Built) -> None:
    declared: dict[str, Sequence[str]] = {"cooking": (), "astronomy": (), "general": ()}
    router = routers.load(built[0], declared=declared | {"soccer": sentences("football", count=8, seed=12)})
    assert share(router, "soccer", sentences("football", count=30, seed=13)) > 0.6


@pytest.mark.parametrize("text", ["", "\ud800", "日本の首都"])
def test_odd_example_texts_are_harmless(built: Built, text: str) -> None:
    router = adapted(built, chess=(text, "\x00"))
    for prediction in router.predict(["bake bread in the oven", text]):
        assert np.isfinite(prediction.probabilities).all()
        assert prediction.probabilities.sum() == pytest.approx(1, abs=1e-4)
        assert 0 <= prediction.in_distribution <= 1
