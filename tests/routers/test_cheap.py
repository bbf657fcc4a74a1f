"""The cheap heads as they are served compute what the heads compute that training knows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from routers import tokens as pieces_module
from routers.cascade import LEXICAL, STATIC
from routers.files import read_arrays
from routers.heads.fast import FastHeads, StaticCentroids
from routers.heads.lexical import LexicalFeatures, LexicalHead
from routers.heads.linear import LinearHead
from routers.heads.static import StaticVectors
from routers.tokens import WordCachedTokenizer, load_tokenizer, truncate_middle
from tests.routers.conftest import WORDS, sentences

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
def pieces(built: Built) -> WordCachedTokenizer:
    return WordCachedTokenizer(load_tokenizer(built[0] / "tokenizer.json"))


@pytest.mark.parametrize("text", TEXTS, ids=lambda text: text[:20])
def test_one_look_equals_the_separate_heads(built: Built, pieces: WordCachedTokenizer, text: str) -> None:
    tables = read_arrays(built[0] / STATIC, "tokens", "weights", "bias", "centroids", "means")
    lexical = LexicalHead.from_arrays(
        read_arrays(built[0] / LEXICAL, "weights", "idf", "traits", "bias"), LexicalFeatures(pieces)
    )
    static, head = StaticVectors(tables["tokens"]), LinearHead.from_arrays(tables)
    places = StaticCentroids(centroids=tables["centroids"], means=tables["means"])
    glance = FastHeads(lexical, static, head, places)(text)

    read = truncate_middle(text, characters=pieces_module.FAST_CHARACTERS)
    ids = pieces(read)
    logits, known = lexical.look(read, ids)
    np.testing.assert_allclose(glance.lexical, logits, atol=1e-5)
    np.testing.assert_allclose(glance.vector, static.vector(ids), atol=1 / 254)  # half an eighth bit of each piece
    np.testing.assert_allclose(glance.static, head.logits(glance.vector), atol=1e-4)
    assert glance.near == pytest.approx(((places.centroids @ glance.vector).max(), known), abs=2e-5)


@pytest.mark.parametrize("text", TEXTS, ids=lambda text: text[:20])
def test_word_by_word_a_text_has_the_tokenizers_pieces(built: Built, pieces: WordCachedTokenizer, text: str) -> None:
    whole = load_tokenizer(built[0] / "tokenizer.json").encode(text, add_special_tokens=False).ids
    assert pieces(text).tolist() == whole
    assert pieces(text).tolist() == whole  # the second time from memory


def test_words_that_are_remembered_stay_bounded(built: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces_module, "WORDS", 3)
    pieces = WordCachedTokenizer(load_tokenizer(built[0] / "tokenizer.json"))
    texts = ["bake bread", "a b c d e f", "x" * 1000, "bake bread"]
    assert [len(pieces(text)) for text in texts] == [2, 6, 1, 2]
    assert len(pieces._met) <= 3
    assert all(len(word) <= pieces_module.MAX_CACHED_WORD_CHARACTERS for word in pieces._met)
