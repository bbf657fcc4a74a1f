"""A text as the word pieces of the encoder's tokenizer: the one tokenization that the cheap heads share."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from coe.errors import ArtifactError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

CHARACTERS = 512
"""How much of a text the cheap heads read, so that their time is flat in its length."""


def cut(text: str, *, characters: int) -> str:
    """At most about `characters` of `text`: its first three quarters and its last, where questions tend to stand."""
    if len(text) <= characters:
        return text
    tail = characters // 4
    return f"{text[: characters - tail]}\n{text[-tail:]}"


def readable(text: str) -> str:
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


class WordPieces:
    """Texts to lists of word-piece ids, special tokens left out."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.size: int = tokenizer.get_vocab_size(with_added_tokens=True)

    def __call__(self, text: str) -> list[int]:
        try:
            return self._tokenizer.encode(text, add_special_tokens=False).ids
        except TypeError:  # what the Rust side says of a lone surrogate
            return self._tokenizer.encode(readable(text), add_special_tokens=False).ids

    def known(self, words: Iterable[str]) -> list[int]:
        """Ids of those `words` that the vocabulary holds whole."""
        ids = (self._tokenizer.token_to_id(word) for word in words)
        return [i for i in ids if i is not None]
