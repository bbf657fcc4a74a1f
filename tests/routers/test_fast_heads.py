"""The fast heads: the served implementation computes the same as the heads that training uses."""

from __future__ import annotations

import shutil
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

import routers
from routers import tokens
from routers.cascade import LEXICAL, STATIC
from routers.examples import read_arrays
from routers.heads import FastHeads, LexicalFeatures, LexicalHead, LinearHead, StaticCentroids, StaticVectors
from routers.kernel import KERNEL, Kernel
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
    " ".join(f"word{number}" for number in range(200)),  # more tokens than the kernel keeps on its stack
]


IMPLEMENTATIONS = {"numpy": None} | ({"compiled": KERNEL} if KERNEL else {})
"""Of the fast heads: the compiled kernel only where this installation has it."""


@pytest.fixture(scope="module", params=IMPLEMENTATIONS)
def kernel(request: pytest.FixtureRequest) -> Kernel | None:
    return IMPLEMENTATIONS[request.param]


@pytest.fixture(scope="module")
def tokenizer(built: Built, kernel: Kernel | None) -> WordCachedTokenizer:
    return WordCachedTokenizer(load_tokenizer(built[0] / "tokenizer.json"), kernel=kernel)


@pytest.mark.parametrize("text", TEXTS, ids=lambda text: text[:20])
def test_the_fused_heads_equal_the_separate_heads(
    built: Built, tokenizer: WordCachedTokenizer, kernel: Kernel | None, text: str
) -> None:
    tables = read_arrays(built[0] / STATIC, "tokens", "scales", "weights", "bias", "centroids", "means")
    lexical = LexicalHead.from_arrays(
        read_arrays(built[0] / LEXICAL, "weights", "idf", "dense", "bias"), LexicalFeatures(tokenizer)
    )
    static, head = StaticVectors.from_arrays(tables), LinearHead.from_arrays(tables)
    centroids = StaticCentroids(centroids=tables["centroids"], means=tables["means"])
    features = FastHeads(lexical, static, head, centroids, kernel=kernel)(text)

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


def test_the_cache_of_words_stays_bounded(built: Built, kernel: Kernel | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "MAX_CACHED_WORDS", 3)
    tokenizer = WordCachedTokenizer(load_tokenizer(built[0] / "tokenizer.json"), kernel=kernel)
    texts = ["bake bread", "a b c d e f", "x" * 1000, "bake bread"]
    assert [len(tokenizer(text)) for text in texts] == [2, 6, 1, 2]
    assert len(tokenizer._ids_by_word) <= 3
    assert all(len(word) <= tokens.MAX_CACHED_WORD_CHARACTERS for word in tokenizer._ids_by_word)


def test_the_kernel_is_there_where_a_c_compiler_is() -> None:
    assert KERNEL is not None or shutil.which("gcc") is None, "run scripts/build_kernel.py"


compiled = pytest.mark.parametrize("kernel", [found for found in IMPLEMENTATIONS.values() if found])
"""A test of the compiled kernel."""


@compiled
def test_the_kernel_splits_any_ascii_text_as_the_pattern_does(built: Built, kernel: Kernel) -> None:
    plain, fast = (
        WordCachedTokenizer(load_tokenizer(built[0] / "tokenizer.json"), kernel=one) for one in (None, kernel)
    )
    random = Random(0)
    characters = [chr(code) for code in range(128)]
    texts = ["".join(random.choices(characters, k=random.randrange(60))) for _ in range(300)]
    for text in [*characters, *texts, "bake\x1cbread\x00\x7foven", "ABC xyz 0189 [SEP] ##ing"]:
        assert fast.id_bytes(text) == plain.id_bytes(text), repr(text)


@compiled
def test_the_kernel_rejects_what_does_not_fit_its_tables(built: Built, kernel: Kernel) -> None:
    router: Any = routers.load(built[0])
    heads = router.fast_heads
    bias, outputs = heads._ascii_bias, np.empty(2 * heads._classes + heads._dimensions, dtype=np.float32)
    for ids in (-1, len(heads._tokens), 2**40):
        with pytest.raises(IndexError, match="outside the vocabulary"):
            heads._tables.compute(np.int64(ids).tobytes(), bias, outputs)
    for wrong in ((b"123", bias, outputs), (b"", bias[1:], outputs), (b"", bias, outputs[1:])):
        with pytest.raises(ValueError, match="length"):
            heads._tables.compute(*wrong)
    outputs.flags.writeable = False
    with pytest.raises((ValueError, BufferError), match=r"read-only|writable"):
        heads._tables.compute(b"", bias, outputs)
    fitting = {
        "tokens": heads._tokens,
        "scales": np.ones(len(heads._tokens), dtype=np.float32),
        "directions": heads._directions,
        "static_bias": np.ones(heads._classes, dtype=np.float32),
        "terms": heads._terms.view(np.uint16),
        "function_words": np.ones((2, heads._classes), dtype=np.float32),
        "log_counts": heads._log_counts,
    }
    kernel.Tables(**fitting)
    for name, table in fitting.items():
        for other in (table[:0], table[1:], table.astype(np.float64), table[:-1]):
            if name in ("log_counts", "directions") and other.dtype == np.float32 and len(other):
                continue  # any number of counts and centroids fits
            with pytest.raises((ValueError, BufferError)):
                kernel.Tables(**{**fitting, name: other})


@compiled
def test_the_kernel_passes_on_errors_of_the_tokenizer(kernel: Kernel) -> None:
    def fails(word: str) -> bytes:
        raise LookupError(word)

    with pytest.raises(LookupError, match="bread"):
        kernel.word_ids("bake bread", {"bake": b""}, fails)
    with pytest.raises(TypeError):
        kernel.word_ids("bake", {}, lambda word: word)  # type: ignore[arg-type,return-value]
    with pytest.raises(ValueError, match="ASCII"):
        kernel.word_ids("é", {}, fails)
    with pytest.raises(UnicodeEncodeError):
        kernel.word_ids("\ud800", {}, fails)
