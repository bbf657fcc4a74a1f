"""The router's sentence encoder for documents and questions about them: it reads more of a text than routing does."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from routers.encoders import OnnxEncoder
from routers.tokens import load_tokenizer, readable

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TOKENS = 256
"""Of a text that are read, special tokens included; MiniLM was trained on no longer ones."""


class DocumentEncoder:
    """A coe.core.Encoder with its tokenizer. Thread-safe.

    `digest` tells encoders apart: of the network's and the tokenizer's files.
    """

    def __init__(self, encoder: OnnxEncoder, tokenizer: Tokenizer, *, digest: str) -> None:
        self._encoder = encoder
        self._tokenizer = tokenizer
        self.dimensions = encoder.dimensions
        self.digest = digest

    @classmethod
    def load(cls, network: Path, tokenizer: Path, *, threads: int = 1) -> DocumentEncoder:
        """Raises ArtifactError when either file cannot be used."""
        found = load_tokenizer(tokenizer)
        encoder = OnnxEncoder(network, found, threads=threads, tokens=TOKENS, characters=16 * TOKENS)
        return cls(encoder, found, digest=_digest(network, tokenizer))

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Unit vectors, float32 (n_texts, dimensions)."""
        return self._encoder.encode(texts)

    def read(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Their readings, as a router takes them, float32 (n_texts, width)."""
        return self._encoder.read(texts)

    def spans(self, texts: Sequence[str]) -> list[list[tuple[int, int]]]:
        """Where the tokens of each text begin and end, in characters; special tokens left out."""
        shown = [readable(text) for text in texts]
        return [encoding.offsets for encoding in self._tokenizer.encode_batch(shown, add_special_tokens=False)]


def _digest(*files: Path) -> str:
    whole = hashlib.sha256()
    for file in files:
        with file.open("rb") as opened:
            whole.update(hashlib.file_digest(opened, "sha256").digest())
    return whole.hexdigest()[:16]
