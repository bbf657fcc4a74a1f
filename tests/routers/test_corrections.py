"""Corrected prompts have a local effect on the router, in every stage, without training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import routers
from coe.core import FAST_UNCERTAIN
from routers.cascade import CascadeRouter
from routers.corrections import Corrections
from tests.routers.conftest import WORDS, examples, sentences

Built = tuple[Path, dict[str, Any], list[Any]]
PROMPT, CATEGORY = "bake the bread", "football"


@pytest.fixture
def router(built: Built) -> CascadeRouter:
    made = routers.load(built[0])
    made.correct([(PROMPT, CATEGORY)])
    return made


def test_a_corrected_prompt_gets_its_category_surely_and_names_the_correction(router: CascadeRouter) -> None:
    for embeddings in (None, router.encoder.features([PROMPT])):
        (found,) = router.predict([PROMPT], embeddings=embeddings)
        assert (router.categories[found.best], found.confidence) == (CATEGORY, pytest.approx(1.0, abs=0.01))
        near = found.correction
        assert near is not None
        assert (near.category, near.digest) == (CATEGORY, routers.prompt_digest(PROMPT))
        assert near.similarity == pytest.approx(1.0, abs=0.01)


def test_the_fast_stage_leaves_a_text_near_a_correction_to_the_encoder(router: CascadeRouter) -> None:
    found = router.predict_fast(PROMPT)
    assert (found.stage, router.categories[found.best]) == (FAST_UNCERTAIN, CATEGORY)


def test_texts_that_are_far_or_nearer_to_the_training_data_keep_their_prediction(
    built: Built, router: CascadeRouter
) -> None:
    texts = [text for name in WORDS for text in sentences(name, count=30, seed=5)] + [e.prompt for e in examples()]
    before = routers.load(built[0]).predict(texts)
    changed = [a.best != b.best for a, b in zip(before, router.predict(texts), strict=True)]
    assert np.mean(changed) < 0.05
    assert not any(changed[-len(examples()) :])


def test_corrections_are_read_with_the_router_over_the_declared_categories(folder: Path, router: CascadeRouter) -> None:
    assert Corrections.read(folder) is None
    assert router.corrections is not None
    router.corrections.write(folder)
    assert routers.load(folder).predict([PROMPT])[0].correction is not None
    for declared, follows in ((("football", "general", "cooking"), True), (("astronomy", "general"), False)):
        adapted = routers.load(folder, declared=dict.fromkeys(declared, ("a", "b")))
        (found,) = adapted.predict([PROMPT])
        assert (adapted.categories[found.best] == CATEGORY) is follows
