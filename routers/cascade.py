"""The served router: cheap heads first, the sentence encoder only where they are unsure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from coe.core import Encoder, Prediction
from coe.errors import ArtifactError
from routers.calibration import Floats, pooled, sharpness, softmax
from routers.distill import StaticVectors
from routers.files import content_version, read_arrays, read_json
from routers.knn import KnnHead
from routers.lexical import LexicalFeatures, LexicalHead
from routers.linear import LinearHead
from routers.pieces import CHARACTERS, WordPieces, cut, load_tokenizer

FORMAT = 1
CONFIG, TOKENIZER, NETWORK = "router.json", "tokenizer.json", "encoder.onnx"
LEXICAL, STATIC, SEMANTIC = "lexical.npz", "static.npz", "semantic.npz"
TABLES = (TOKENIZER, NETWORK, LEXICAL, STATIC, SEMANTIC)


@dataclass(frozen=True, slots=True)
class Pooling:
    """How heads are joined: weights of a logarithmic pool per stage, and when the cheap stage is sure enough.

    `cheap` weighs (lexical, static), `full` weighs (lexical, static, linear, knn); the weights carry the calibration.
    The full stage's logits are multiplied by 1 + `slope` * (familiarity - `usual`): far from the training data the
    posterior flattens.
    """

    cheap: tuple[float, ...]
    full: tuple[float, ...]
    threshold: float
    slope: float
    usual: float

    def join_cheap(self, lexical: Floats, static: Floats) -> Floats:
        """The cheap stage's posterior, shape as its arguments: (n_categories,) or (n_texts, n_categories)."""
        return softmax(np.float32(self.cheap[0]) * lexical + np.float32(self.cheap[1]) * static)

    def join_full(self, heads: Sequence[Floats], familiarity: Floats) -> Floats:
        """The full stage's posterior (n_texts, n_categories) from its heads' logits and each text's familiarity."""
        return softmax(pooled(heads, self.full) * sharpness(familiarity, slope=self.slope, usual=self.usual))


class CascadeRouter:
    """A coe.core.Router over four heads. Thread-safe: nothing changes after construction."""

    def __init__(
        self,
        *,
        categories: tuple[str, ...],
        version: str,
        pieces: WordPieces,
        lexical: LexicalHead,
        static: StaticVectors,
        static_head: LinearHead,
        encoder: Encoder,
        linear: LinearHead,
        knn: KnnHead,
        pooling: Pooling,
    ) -> None:
        self.categories = categories
        self.version = version
        self._pieces = pieces
        self._lexical = lexical
        self._static = static
        self._static_head = static_head
        self._encoder = encoder
        self._linear = linear
        self._knn = knn
        self.pooling = pooling

    def peek(self, text: str) -> Prediction | None:
        """The cheap heads' answer, or None where the encoder should be asked."""
        posterior = self.pooling.join_cheap(*self._cheap_logits(text))
        return Prediction(posterior, "cheap") if posterior.max() >= self.pooling.threshold else None

    def predict(self, texts: Sequence[str]) -> list[Prediction]:
        """One Prediction a text; the encoder sees only those that `peek` leaves open."""
        found = [self.peek(text) for text in texts]
        unsure = [text for text, prediction in zip(texts, found, strict=True) if prediction is None]
        answers = iter(self._full(unsure) if unsure else ())
        return [prediction or next(answers) for prediction in found]

    def _full(self, texts: Sequence[str]) -> list[Prediction]:
        heads, familiarity = self.head_logits(texts)
        return [Prediction(row, "full") for row in self.pooling.join_full(tuple(heads.values()), familiarity)]

    def head_logits(self, texts: Sequence[str]) -> tuple[dict[str, Floats], Floats]:
        """Every head's logits on every text, (n_texts, n_categories) by name, and familiarity (n_texts,)."""
        lexical, static = (np.stack(logits) for logits in zip(*map(self._cheap_logits, texts), strict=True))
        vectors = self._encoder.encode(texts)
        votes, familiarity = self._knn.look(vectors)
        heads = {"lexical": lexical, "static": static, "linear": self._linear.logits(vectors), "knn": votes}
        return heads, familiarity

    def _cheap_logits(self, text: str) -> tuple[Floats, Floats]:
        text = cut(text, characters=CHARACTERS)
        ids = np.array(self._pieces(text), dtype=np.int64)
        return self._lexical.logits(text, ids), self._static_head.logits(self._static.vector(ids))


def load_cascade(folder: Path, *, threads: int) -> CascadeRouter:
    """The CascadeRouter in `folder`; ArtifactError when a file is missing, damaged or of another format."""
    from routers.encoders import OnnxEncoder

    config = read_json(folder / CONFIG)
    if config.get("format") != FORMAT:
        raise ArtifactError(f"{folder / CONFIG}: format {config.get('format')!r}, not {FORMAT}; train the router again")
    version = content_version(folder, [CONFIG, *TABLES])
    pieces = WordPieces(load_tokenizer(folder / TOKENIZER))
    encoder = OnnxEncoder.load(folder / NETWORK, folder / TOKENIZER, threads=threads)
    heads = _heads(folder, pieces)
    try:
        categories, pooling = tuple(config["categories"]), Pooling(**config["pooling"])
    except (KeyError, TypeError) as error:
        raise ArtifactError(f"{folder / CONFIG}: incomplete ({error!r}); train the router again") from error
    _check_shapes(folder, heads, rows=pieces.size, dimensions=encoder.dimensions, classes=len(categories))
    return CascadeRouter(
        categories=categories, version=version, pieces=pieces, pooling=pooling, encoder=encoder, **heads
    )


def _heads(folder: Path, pieces: WordPieces) -> dict[str, Any]:
    lexical = read_arrays(folder / LEXICAL, "weights", "idf", "traits", "bias")
    static = read_arrays(folder / STATIC, "tokens", "weights", "bias")
    semantic = read_arrays(folder / SEMANTIC, "weights", "bias", "vectors", "labels")
    return {
        "lexical": LexicalHead.from_arrays(lexical, LexicalFeatures(pieces)),
        "static": StaticVectors(tokens=static["tokens"]),
        "static_head": LinearHead.from_arrays(static),
        "linear": LinearHead.from_arrays(semantic),
        "knn": KnnHead(
            vectors=semantic["vectors"], labels=semantic["labels"].astype(np.int64), classes=len(semantic["bias"])
        ),
    }


def _check_shapes(folder: Path, heads: dict[str, Any], *, rows: int, dimensions: int, classes: int) -> None:
    """ArtifactError unless the tables fit the tokenizer, the encoder and the categories."""
    expected = {
        LEXICAL: (heads["lexical"].weights.shape, (heads["lexical"].features.rows, classes)),
        STATIC: ((len(heads["static"].tokens), len(heads["static_head"].bias)), (rows, classes)),
        SEMANTIC: (heads["linear"].weights.shape, (dimensions, classes)),
    }
    for name, (found, wanted) in expected.items():
        if found != wanted:
            raise ArtifactError(f"{folder / name}: shape {found}, not {wanted} as asked; train the router again")
