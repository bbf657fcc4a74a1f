"""A text as the word pieces of the encoder's tokenizer: the one tokenization that the cheap heads share."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from coe.errors import ArtifactError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

FAST_CHARACTERS = 512
"""How much of a text the cheap heads read, so that their time is flat in its length."""
MAX_CACHED_WORDS, MAX_CACHED_WORD_CHARACTERS = 30_000, 32
"""Words whose pieces are remembered, at most about 6 MB, and how many characters such a word may have."""
_WORD = re.compile(r"[a-z0-9]+|[^a-z0-9\s]")


def truncate_middle(text: str, *, characters: int) -> str:
    """At most about `characters` of `text`: its first three quarters and its last, where questions tend to stand."""
    if len(text) <= characters:
        return text
    tail = characters // 4
    return f"{text[: characters - tail]}\n{text[-tail:]}"


def replace_surrogates(text: str) -> str:
    """`text` without lone surrogates, which no tokenizer accepts."""
    return text.encode("utf-8", "replace").decode("utf-8")


def load_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer in `path` (tokenizer.json), neither padding nor truncating."""
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the Rust side raises bare Exception
        raise ArtifactError(f"{path}: not a tokenizer ({error}); train the router again") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


class WordCachedTokenizer:
    """Texts to word-piece ids, int64 (n_pieces,), special tokens left out. Thread-safe.

    Where the tokenizer is BERT's kind, the pieces of an ASCII word do not depend on its neighbours, and those of words
    met before are remembered: that takes a fifth of the tokenizer's own time. A special token that is written out in
    such a text is no special token, and a control character ends a word.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.size: int = tokenizer.get_vocab_size(with_added_tokens=True)
        self._word_by_word = _is_uncased_bert(tokenizer)
        self._met: dict[str, bytes] = {}

    def __call__(self, text: str) -> NDArray[np.int64]:
        if not (self._word_by_word and text.isascii()):
            return np.frombuffer(self._encode(text), dtype=np.int64)
        met, learn = self._met.get, self._learn
        found = [met(word) or learn(word) for word in _WORD.findall(text.lower())]
        return np.frombuffer(b"".join(found), dtype=np.int64)

    def _learn(self, word: str) -> bytes:
        ids = self._encode(word)
        if len(word) <= MAX_CACHED_WORD_CHARACTERS:
            if len(self._met) >= MAX_CACHED_WORDS:
                self._met.clear()
            self._met[word] = ids
        return ids

    def _encode(self, text: str) -> bytes:
        try:
            ids = self._tokenizer.encode(text, add_special_tokens=False).ids
        except TypeError:  # what the Rust side says of a lone surrogate
            ids = self._tokenizer.encode(replace_surrogates(text), add_special_tokens=False).ids
        return np.array(ids, dtype=np.int64).tobytes()

    def known(self, words: Iterable[str]) -> list[int]:
        """Ids of those `words` that the vocabulary holds whole."""
        ids = (self._tokenizer.token_to_id(word) for word in words)
        return [i for i in ids if i is not None]


def _is_uncased_bert(tokenizer: Tokenizer) -> bool:
    from tokenizers.normalizers import BertNormalizer
    from tokenizers.pre_tokenizers import BertPreTokenizer

    normal, truncate_middle = tokenizer.normalizer, tokenizer.pre_tokenizer
    return isinstance(normal, BertNormalizer) and normal.lowercase and isinstance(truncate_middle, BertPreTokenizer)
