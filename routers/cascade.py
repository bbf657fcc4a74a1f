"""The served router: cheap heads first, the sentence encoder only where they are unsure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from coe.core import Encoder, Prediction
from coe.errors import ArtifactError
from routers.calibration import Floats, pooled, softmax
from routers.distill import StaticVectors
from routers.familiarity import Familiarity
from routers.files import content_version, read_arrays, read_json
from routers.knn import KnnHead
from routers.lexical import LexicalFeatures, LexicalHead
from routers.linear import LinearHead
from routers.pieces import CHARACTERS, WordPieces, cut, load_tokenizer

FORMAT = 2
CONFIG, TOKENIZER, NETWORK = "router.json", "tokenizer.json", "encoder.onnx"
LEXICAL, STATIC, SEMANTIC = "lexical.npz", "static.npz", "semantic.npz"
TABLES = (TOKENIZER, NETWORK, LEXICAL, STATIC, SEMANTIC)


@dataclass(frozen=True, slots=True)
class Pooling:
    """How heads are joined: weights of a logarithmic pool per stage, and when the cheap stage is sure enough.

    `cheap` weighs (lexical, static), `full` weighs (lexical, static, linear, knn); the weights carry the calibration.
    """

    cheap: tuple[float, ...]
    full: tuple[float, ...]
    threshold: float

    def join_cheap(self, lexical: Floats, static: Floats) -> Floats:
        """The cheap stage's posterior, shape as its arguments: (n_categories,) or (n_texts, n_categories)."""
        return softmax(np.float32(self.cheap[0]) * lexical + np.float32(self.cheap[1]) * static)

    def join_full(self, heads: Sequence[Floats]) -> Floats:
        """The full stage's posterior (n_texts, n_categories) from its heads' logits."""
        return softmax(pooled(heads, self.full))


@dataclass(frozen=True, slots=True)
class Familiarities:
    """Each stage's judgement of closeness.

    `cheap` weighs the cosine to the nearest centroid of static vectors and the share of known terms, `full` the cosine
    to the nearest exemplars in the encoder's space.
    """

    cheap: Familiarity
    full: Familiarity

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        return cls(**{stage: Familiarity(tuple(v["weights"]), v["bias"]) for stage, v in value.items()})


@dataclass(frozen=True, slots=True)
class Places:
    """Where the training data lie among static vectors, unit length: `centroids` (n, dimensions) of all of it, `means`
    (n_categories, dimensions) of each category."""

    centroids: Floats
    means: Floats


@dataclass(frozen=True, slots=True)
class Glance:
    """What the cheap heads see of one text: logits (n_categories,), its static vector, and its closeness (2,)."""

    lexical: Floats
    static: Floats
    vector: Floats
    near: Floats


@dataclass(frozen=True, slots=True)
class Study:
    """What all heads see of some texts: logits (n_texts, n_categories) by name, vectors, closeness (n_texts,)."""

    heads: dict[str, Floats]
    vectors: Floats
    closeness: Floats


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
        places: Places,
        encoder: Encoder,
        linear: LinearHead,
        knn: KnnHead,
        pooling: Pooling,
        familiarities: Familiarities,
    ) -> None:
        self.categories = categories
        self.version = version
        self._pieces = pieces
        self._lexical = lexical
        self._static = static
        self._static_head = static_head
        self._linear = linear
        self.places = places
        self.encoder = encoder
        self.knn = knn
        self.pooling = pooling
        self.familiarities = familiarities

    def peek(self, text: str) -> Prediction | None:
        """The cheap heads' answer, or None where the encoder should be asked."""
        prediction = self.guess(self.glance(text))
        return prediction if prediction.confidence >= self.pooling.threshold else None

    def predict(self, texts: Sequence[str]) -> list[Prediction]:
        """One Prediction a text; the encoder sees only those that `peek` leaves open."""
        found = [self.peek(text) for text in texts]
        unsure = [text for text, prediction in zip(texts, found, strict=True) if prediction is None]
        answers = iter(self.conclude(self.study(unsure)) if unsure else ())
        return [prediction or next(answers) for prediction in found]

    def guess(self, glance: Glance) -> Prediction:
        """The cheap stage's answer, sure or not."""
        posterior = self.pooling.join_cheap(glance.lexical, glance.static)
        return Prediction(posterior, "cheap", float(self.familiarities.cheap(glance.near)))

    def conclude(self, study: Study) -> list[Prediction]:
        """The full stage's answers."""
        posteriors = self.pooling.join_full(tuple(study.heads.values()))
        familiar = self.familiarities.full(study.closeness[:, None])
        return [Prediction(row, "full", float(f)) for row, f in zip(posteriors, familiar, strict=True)]

    def study(self, texts: Sequence[str]) -> Study:
        """One or more texts as all heads see them."""
        glances = [self.glance(text) for text in texts]
        vectors = self.encoder.encode(texts)
        votes, closeness = self.knn.look(vectors)
        heads = {
            "lexical": np.stack([glance.lexical for glance in glances]),
            "static": np.stack([glance.static for glance in glances]),
            "linear": self._linear.logits(vectors),
            "knn": votes,
        }
        return Study(heads, vectors, closeness)

    def glance(self, text: str) -> Glance:
        """One text as the cheap heads see it."""
        text = cut(text, characters=CHARACTERS)
        ids = np.array(self._pieces(text), dtype=np.int64)
        lexical, known = self._lexical.look(text, ids)
        vector = self._static.vector(ids)
        nearest = (self.places.centroids @ vector).max()
        return Glance(lexical, self._static_head.logits(vector), vector, np.array([nearest, known], dtype=np.float32))


def read_config(folder: Path) -> dict[str, Any]:
    """router.json; ArtifactError when it is missing, damaged or of another format."""
    config = read_json(folder / CONFIG)
    if config.get("format") != FORMAT:
        found = f"{folder / CONFIG}: format {config.get('format')!r}, not {FORMAT}"
        raise ArtifactError(f"{found}; train the router again with `coe train`")
    return config


def load_cascade(folder: Path, *, threads: int) -> CascadeRouter:
    """The CascadeRouter in `folder`; ArtifactError when a file is missing, damaged or of another format."""
    from routers.encoders import OnnxEncoder

    config = read_config(folder)
    version = content_version(folder, [CONFIG, *TABLES])
    pieces = WordPieces(load_tokenizer(folder / TOKENIZER))
    encoder = OnnxEncoder.load(folder / NETWORK, folder / TOKENIZER, threads=threads)
    heads = _heads(folder, pieces)
    try:
        categories, pooling = tuple(config["categories"]), Pooling(**config["pooling"])
        familiarities = Familiarities.from_json(config["familiarities"])
    except (AttributeError, KeyError, TypeError) as error:
        raise ArtifactError(f"{folder / CONFIG}: incomplete ({error!r}); train the router again") from error
    _check_shapes(folder, heads, rows=pieces.size, dimensions=encoder.dimensions, classes=len(categories))
    return CascadeRouter(
        categories=categories,
        version=version,
        pieces=pieces,
        pooling=pooling,
        familiarities=familiarities,
        encoder=encoder,
        **heads,
    )


def _heads(folder: Path, pieces: WordPieces) -> dict[str, Any]:
    lexical = read_arrays(folder / LEXICAL, "weights", "idf", "traits", "bias")
    static = read_arrays(folder / STATIC, "tokens", "weights", "bias", "centroids", "means")
    semantic = read_arrays(folder / SEMANTIC, "weights", "bias", "vectors", "labels")
    return {
        "lexical": LexicalHead.from_arrays(lexical, LexicalFeatures(pieces)),
        "static": StaticVectors(tokens=static["tokens"]),
        "static_head": LinearHead.from_arrays(static),
        "places": Places(centroids=static["centroids"], means=static["means"]),
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
        f"{STATIC}: means": (heads["places"].means.shape, (classes, heads["static"].tokens.shape[1])),
    }
    for name, (found, wanted) in expected.items():
        if found != wanted:
            raise ArtifactError(f"{folder / name}: shape {found}, not {wanted} as asked; train the router again")
