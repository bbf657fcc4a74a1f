"""Terms of texts, and BM25 over packed postings."""

from __future__ import annotations

import math

import numpy as np
import pytest

from coe.retrieval.redis.terms import POSTING, WEIGHT_SCALE, query_terms, term_weights, terms, top_chunks


def test_words_are_folded_and_stemmed_without_stop_words() -> None:
    assert terms("The Ärzte in München are testing E-4711!") == ["arzt", "munchen", "test", "e", "4711"]
    assert terms("日本語です 你好 水") == ["日本", "本語", "語で", "です", "你好", "水"]
    assert terms("x" * 100) == ["x" * 40]
    assert terms("the of and \x00 ...") == []


def test_the_terms_of_a_question_are_bounded() -> None:
    assert len(query_terms(" ".join(f"word{number}" for number in range(1000)))) == 64
    assert query_terms("ants ants Ants") == ["ant"]


def test_scores_are_those_of_bm25() -> None:
    texts = ["ant bee", "bee bee wasp", "wasp"]
    packed: dict[str, list[bytes]] = {}
    for number, text in enumerate(texts, 1):
        for word, weight in term_weights(text).items():
            packed.setdefault(word, []).append(np.array([(number, weight)], dtype=POSTING).tobytes())
    scores = top_chunks({"ant": packed["ant"], "bee": packed["bee"]}, chunks=3, limit=10)

    def part(count: int, length: int, df: int) -> float:
        rarity = math.log(1 + (3 - df + 0.5) / (df + 0.5))
        return rarity * count * 2.2 / (count + 1.2 * (0.25 + 0.75 * length / 100))

    assert scores == {
        1: pytest.approx(part(1, 2, 1) + part(1, 2, 2), rel=2 / WEIGHT_SCALE),
        2: pytest.approx(part(2, 3, 2), rel=2 / WEIGHT_SCALE),
    }
    assert list(top_chunks({"bee": packed["bee"]}, chunks=3, limit=1)) == [2]
    assert top_chunks({}, chunks=0, limit=5) == {}
