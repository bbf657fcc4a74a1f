"""The fast heads: the served implementation computes the same as the heads that training uses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import routers
from routers import tokens
from routers.cascade import LEXICAL, STATIC
from routers.files import read_arrays
from routers.heads.fast import FastHeads, StaticCentroids, StaticVectors
from routers.heads.lexical import LexicalFeatures, LexicalHead
from routers.heads.semantic import LinearHead
from routers.tokens import WordCachedTokenizer, load_tokenizer, truncate_middle
from tests.routers.conftest import WORDS, lexical_score, sentences

Built = tuple[Path, dict[str, Any], list[Any]]
TEXTS = [
    *(text for name in WORDS for text in sentences(name, count=5, seed=7)),
    "",
    "bake",
    "bake bake bake bread bread",
    "the el der bake",
    "é 中 bake Россия",
    "Why, oh WHY\tdoes my   oven-baked 'bread'\nfail?!",
    "bake " * 2000,
]


@pytest.fixture(scope="module")
def tokenizer(built: Built) -> WordCachedTokenizer:
    return WordCachedTokenizer(load_tokenizer(built[0] / "tokenizer.json"))


@pytest.mark.parametrize("text", TEXTS, ids=lambda text: text[:20])
def test_the_fused_heads_equal_the_separate_heads(built: Built, tokenizer: WordCachedTokenizer, text: str) -> None:
    tables = read_arrays(built[0] / STATIC, "tokens", "scales", "weights", "bias", "centroids", "means")
    lexical = LexicalHead.from_arrays(
        read_arrays(built[0] / LEXICAL, "weights", "idf", "dense", "bias"), LexicalFeatures(tokenizer)
    )
    static, head = StaticVectors.from_arrays(tables), LinearHead.from_arrays(tables)
    centroids = StaticCentroids(centroids=tables["centroids"], means=tables["means"])
    features = FastHeads(lexical, static, head, centroids)(text)

    truncated = truncate_middle(text, characters=tokens.FAST_CHARACTERS)
    ids = tokenizer(truncated)
    logits, known = lexical_score(lexical, truncated, ids)
    np.testing.assert_allclose(features.lexical, logits, atol=1e-5)
    np.testing.assert_allclose(features.vector, static.vector(ids), atol=1e-5)
    np.testing.assert_allclose(features.static, head.logits(features.vector), atol=1e-4)
    assert features.similarity == pytest.approx(((centroids.centroids @ features.vector).max(), known), abs=2e-5)


@pytest.mark.parametrize("text", TEXTS, ids=lambda text: text[:20])
def test_cached_words_give_the_same_tokens_as_the_tokenizer(
    built: Built, tokenizer: WordCachedTokenizer, text: str
) -> None:
    whole = load_tokenizer(built[0] / "tokenizer.json").encode(text, add_special_tokens=False).ids
    assert tokenizer(text).tolist() == whole
    assert tokenizer(text).tolist() == whole  # the second time from the cache


def test_the_cache_of_words_stays_bounded(built: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "MAX_CACHED_WORDS", 3)
    tokenizer = WordCachedTokenizer(load_tokenizer(built[0] / "tokenizer.json"))
    texts = ["bake bread", "a b c d e f", "x" * 1000, "bake bread"]
    assert [len(tokenizer(text)) for text in texts] == [2, 6, 1, 2]
    assert len(tokenizer._ids_by_word) <= 3
    assert all(len(word) <= tokens.MAX_CACHED_WORD_CHARACTERS for word in tokenizer._ids_by_word)


def test_features_are_computed_once_for_a_text_and_the_cache_keeps_the_truncated_text_only(
    built: Built, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed: list[str] = []
    compute = FastHeads._compute

    def counting(self: FastHeads, text: str) -> Any:
        computed.append(text[:5])
        return compute(self, text)

    monkeypatch.setattr(FastHeads, "_compute", counting)
    router: Any = routers.load(built[0])
    for text in ("bake", "orbit " * 1000, "bake"):
        router.predict_fast(text, force=True)
        if len(text) > 1000:
            assert len(router.fast_heads._last[0]) < 600
        router.predict([text])
    assert computed == ["bake", "orbit", "bake"]
