"""Tokens and hashed token bigrams of a text for the fast heads, by the sentence encoder's own tokenizer.

One tokenization serves all fast heads. Ids of known words are cached, which takes a fifth of the tokenizer's time, and
less with the compiled kernel.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from coe.errors import ArtifactError
from routers.kernel import KERNEL, Kernel

if TYPE_CHECKING:
    from tokenizers import Tokenizer

FAST_CHARACTERS = 512
"""Characters of a text that the fast heads read, so that their latency does not depend on its length."""
MAX_CACHED_WORDS = 30_000
"""Words in the cache, which then takes about 6 MB."""
MAX_CACHED_WORD_CHARACTERS = 32
MAX_WORDS_OUTSIDE_ASCII = 8
"""English texts have a few, such as words with a typographic apostrophe or dash."""
_WORD = re.compile(r"[a-z0-9]+|[^a-z0-9\s]")
HASH_BUCKETS = 1 << 16
"""Rows that token bigrams are hashed into."""


def truncate_middle(text: str, *, characters: int) -> str:
    """Return about the first 3/4 and the last 1/4 of `characters`: questions often stand at the end of a text."""
    if len(text) <= characters:
        return text
    tail = characters // 4
    return f"{text[: characters - tail]}\n{text[-tail:]}"


def replace_surrogates(text: str) -> str:
    """Replace lone surrogates, which tokenizers reject."""
    return text.encode("utf-8", "replace").decode("utf-8")


def load_tokenizer(path: Path) -> Tokenizer:
    """Load a tokenizer.json without padding and truncation. Raises ArtifactError."""
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the Rust side raises bare Exception
        raise ArtifactError(f"{path}: not a tokenizer ({error}); train the router again") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


class WordCachedTokenizer:
    """Maps a text to its token ids, int64 (n_tokens,), without special tokens. Thread-safe.

    An uncased BERT tokenizer splits words between white space, and ASCII words within them, independently of their
    neighbours, so token ids are cached by word. A text with many words outside ASCII is encoded whole, as most of them
    would be new. Other texts differ from the plain tokenizer in two ways: a special token such as [SEP] in the text is
    ordinary text, and a control character ends a word.
    """

    def __init__(self, tokenizer: Tokenizer, *, kernel: Kernel | None = KERNEL) -> None:
        self._tokenizer = tokenizer
        self._kernel = kernel
        self.vocabulary_size: int = tokenizer.get_vocab_size(with_added_tokens=True)
        self._cacheable = _is_uncased_bert(tokenizer)
        self._ids_by_word: dict[str, bytes] = {}

    def __call__(self, text: str) -> NDArray[np.int64]:
        return np.frombuffer(self.id_bytes(text), dtype=np.int64)

    def id_bytes(self, text: str) -> bytes:
        """Return the token ids as the bytes of an int64 array."""
        if self._cacheable and self._kernel is not None and text.isascii():
            return self._kernel.word_ids(text, self._ids_by_word, self._add_to_cache)
        words = self._words(text) if self._cacheable else None
        if words is None:
            return self._encode(text)
        cached, add = self._ids_by_word.get, self._add_to_cache
        return b"".join([cached(word) or add(word) for word in words])

    def _words(self, text: str) -> list[str] | None:
        """Return the words of a text; None if too many of them are not ASCII."""
        if text.isascii():
            return _WORD.findall(text.lower())
        parts, words = text.split(), list[str]()
        if sum([not part.isascii() for part in parts]) > MAX_WORDS_OUTSIDE_ASCII:
            return None
        for part in parts:
            words += _WORD.findall(part.lower()) if part.isascii() else [part]
        return words

    def _add_to_cache(self, word: str) -> bytes:
        ids = self._encode(word)
        if len(word) <= MAX_CACHED_WORD_CHARACTERS:
            if len(self._ids_by_word) >= MAX_CACHED_WORDS:
                self._ids_by_word.clear()
            self._ids_by_word[word] = ids
        return ids

    def _encode(self, text: str) -> bytes:
        try:
            ids = self._tokenizer.encode(text, add_special_tokens=False).ids
        except TypeError:  # raised for a lone surrogate
            ids = self._tokenizer.encode(replace_surrogates(text), add_special_tokens=False).ids
        return np.array(ids, dtype=np.int64).tobytes()

    def bigrams(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the row of every bigram in `ids`, behind those of the vocabulary."""
        hashes = (ids[:-1] * 0x9E3779B1 + ids[1:] * 0x85EBCA6B) >> 7
        return self.vocabulary_size + (hashes & (HASH_BUCKETS - 1))

    def vocabulary_ids(self, words: Iterable[str]) -> list[int]:
        """Return the ids of those `words` that are single tokens."""
        ids = (self._tokenizer.token_to_id(word) for word in words)
        return [i for i in ids if i is not None]


def _is_uncased_bert(tokenizer: Tokenizer) -> bool:
    from tokenizers.normalizers import BertNormalizer
    from tokenizers.pre_tokenizers import BertPreTokenizer

    normalizer = tokenizer.normalizer
    uncased = isinstance(normalizer, BertNormalizer) and normalizer.lowercase
    return uncased and isinstance(tokenizer.pre_tokenizer, BertPreTokenizer)
