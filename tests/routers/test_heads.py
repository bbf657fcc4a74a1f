"""Each head alone: its features, and that training and serving compute the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from routers.heads import (
    WRITING_SYSTEM_NAMES,
    KnnHead,
    LexicalFeatures,
    WritingSystems,
    fit_knn,
    fit_lexical,
    fit_linear,
    lexical_matrix,
)
from routers.tokens import WordCachedTokenizer, load_tokenizer, replace_surrogates, truncate_middle
from routers.training.fitting import folds
from tests.routers.conftest import WORDS, lexical_score, sentences

Built = tuple[Path, dict[str, Any], list[Any]]


@pytest.fixture(scope="module")
def tokenizer(built: Built) -> WordCachedTokenizer:
    return WordCachedTokenizer(load_tokenizer(built[0] / "tokenizer.json"))


# ------------------------------------------------------------------------------------ text


def test_a_long_text_keeps_its_head_and_its_tail() -> None:
    assert truncate_middle("aaaaaa" + "-" * 50 + "zz", characters=8) == "aaaaaa\nzz"


@pytest.mark.parametrize(
    "text",
    [
        "What’s the dough’s oven — 200°C, isn't it? “Yes”…",
        "naïve café\u00a0crème, e\u0301t\u00e9 and ﬁne ½ bread",
        "translate 'bread' to 中文 and 日本語 🍞🍞, please.",
        "bake\u2028the\u3000bread\ud800 now",
        "сколько времени выпекать этот хлеб в моей новой духовке",
    ],
)
def test_words_outside_ascii_have_the_tokens_of_the_plain_tokenizer(tokenizer: WordCachedTokenizer, text: str) -> None:
    plain = tokenizer._tokenizer.encode(replace_surrogates(text), add_special_tokens=False).ids
    assert [tokenizer(text).tolist() for _ in range(2)] == [plain] * 2  # the second time from the cache


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("plain English", "ascii"),
        ("Ελλάδα", "greek"),
        ("Россия", "cyrillic"),
        ("مرحبا", "arabic"),
        ("नमस्ते", "indic"),
        ("สวัสดี", "thai"),
        ("한국어", "hangul"),
        ("中文问题", "cjk"),
        ("ひらがな", "kana"),
        ("ñáéíóú", "latin"),
        ("გამარჯობა", "other"),
    ],
)
def test_a_writing_system_is_detected(text: str, script: str) -> None:
    shares = WritingSystems()(text)
    assert WRITING_SYSTEM_NAMES[int(shares.argmax())] == script
    assert shares.sum() == pytest.approx(1)


# ------------------------------------------------------------------------------------ heads


def test_the_lexical_head_computes_the_same_in_training_and_serving(tokenizer: WordCachedTokenizer) -> None:
    features = LexicalFeatures(tokenizer)
    texts = [text for name in WORDS for text in sentences(name, count=15, seed=5)]
    texts[0] = "bake bake bake é 中 el der"  # repeated words, other scripts
    labels = np.repeat(np.arange(len(WORDS)), 15)
    ids = [tokenizer(text) for text in texts]
    data = lexical_matrix(texts, ids, features)
    head = fit_lexical(data, labels, features, c=10.0, classes=len(WORDS))
    trained = data.matrix @ np.concatenate((head.weights, head.dense)) + head.bias
    served, shares = zip(*(lexical_score(head, text, i) for text, i in zip(texts, ids, strict=True)), strict=True)
    served = np.stack(served)
    np.testing.assert_allclose(served, trained, atol=1e-4)
    assert (served.argmax(axis=1) == labels)[1:].all()
    everything = np.arange(len(texts))
    np.testing.assert_allclose(shares, data.known_share(everything, data.document_frequency(everything)), atol=1e-5)
    assert min(shares) < max(shares)


def test_unknown_words_flatten_the_lexical_posterior(tokenizer: WordCachedTokenizer) -> None:
    features = LexicalFeatures(tokenizer)
    texts = [text for name in WORDS for text in sentences(name, count=15, seed=6)]
    ids = [tokenizer(text) for text in texts]
    labels = np.repeat(np.arange(len(WORDS)), 15)
    head = fit_lexical(lexical_matrix(texts, ids, features), labels, features, c=10.0, classes=len(WORDS))

    def spread(text: str) -> float:
        return float(np.ptp(lexical_score(head, text, tokenizer(text))[0]))

    assert spread("bake bread zq xv jk wq zx") < spread("bake bread")


def test_a_category_without_texts_is_never_predicted_and_moves_no_other() -> None:
    vectors = np.array([[1, 0], [0.9, 0.1], [0, 1], [0.1, 0.9]], dtype=np.float32)
    head = fit_linear(vectors, np.array([0, 0, 2, 2]), c=10.0, classes=4)
    assert head.logits(vectors).argmax(axis=1).tolist() == [0, 0, 2, 2]


def test_a_category_that_is_left_out_gets_no_votes() -> None:
    corners = np.eye(3, dtype=np.float32)
    head = KnnHead(corners, corners, np.array([0, 1, 2]), 3).without(1)
    votes, _ = head.score(np.array([[0.1, 1, 0]], dtype=np.float32))
    assert votes[0].argmin() == 1


def test_a_text_outside_the_axes_is_dissimilar_to_all_exemplars() -> None:
    """Even if its small component along the axes is close to an exemplar."""
    corners = np.eye(8, dtype=np.float32)
    head = fit_knn(corners[:4], np.arange(4), classes=4)
    _, similarity = head.score(head.project(np.array([[1, *[0] * 7], [0.6, *[0] * 6, 0.8]], dtype=np.float32)))
    assert similarity.tolist() == pytest.approx([1 / 3, 0.6 / 3])  # the mean over three exemplars


def test_folds_part_the_texts_and_keep_every_class_in_every_rest() -> None:
    labels = np.array([0] * 2 + [1] * 30 + [2] * 3)
    parts = folds(labels)
    assert sorted(np.concatenate([held for _, held in parts]).tolist()) == list(range(35))
    for rest, held in parts:
        assert not set(rest.tolist()) & set(held.tolist())
        assert set(labels[rest].tolist()) == {0, 1, 2}
