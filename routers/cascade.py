"""The served router: cheap heads first, the sentence encoder only where they are unsure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from coe.core import LOAD_SHED, Encoder, Neighbour, Prediction
from coe.errors import ArtifactError
from routers.calibration import Floats, logarithmic_pool, softmax
from routers.files import Arrays, content_version, read_arrays, read_json
from routers.heads.fast import FastFeatures, FastHeads, StaticCentroids
from routers.heads.in_distribution import CategoryMeans, InDistributionModel, unit
from routers.heads.knn import KnnHead
from routers.heads.lexical import LexicalFeatures, LexicalHead
from routers.heads.linear import LinearHead
from routers.heads.static import StaticVectors
from routers.tokens import WordCachedTokenizer, load_tokenizer

if TYPE_CHECKING:
    from routers.encoders import OnnxEncoder

FORMAT = 4
"""In 3 neighbours are looked for along all axes of the encoder's space, in 2 the linear head sees sentence vectors
alone; such routers are served as well."""
CONFIG, TOKENIZER, NETWORK = "router.json", "tokenizer.json", "encoder.onnx"
LEXICAL, STATIC, SEMANTIC = "lexical.npz", "static.npz", "semantic.npz"
EXEMPLARS = "exemplars.json"
"""Digests of the texts behind the vectors of SEMANTIC, for explanations alone."""
TABLES = (TOKENIZER, NETWORK, LEXICAL, STATIC, SEMANTIC)


@dataclass(frozen=True, slots=True)
class EnsembleWeights:
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
        return softmax(logarithmic_pool(heads, self.full))


@dataclass(frozen=True, slots=True)
class InDistributionModels:
    """Each stage's judgement of closeness.

    `cheap` weighs the cosine to the nearest centroid of static vectors and the share of known terms, `full` the cosine
    to the nearest exemplars in the encoder's space.
    """

    cheap: InDistributionModel
    full: InDistributionModel

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        return cls(**{stage: InDistributionModel(tuple(v["weights"]), v["bias"]) for stage, v in value.items()})


@dataclass(frozen=True, slots=True)
class HeadOutputs:
    """What all heads see of some texts: logits (n_texts, n_categories) by name, the encoder's vectors, those along the
    neighbours' axes, closeness (n_texts,)."""

    heads: dict[str, Floats]
    vectors: Floats
    placed: Floats
    similarity: Floats


class CascadeRouter:
    """A coe.core.Router over four heads. Thread-safe."""

    def __init__(
        self,
        *,
        categories: tuple[str, ...],
        version: str,
        cheap: FastHeads,
        places: StaticCentroids,
        encoder: Encoder,
        linear: LinearHead,
        middles: CategoryMeans,
        knn: KnnHead,
        pooling: EnsembleWeights,
        familiarities: InDistributionModels,
    ) -> None:
        self.categories = categories
        self.version = version
        self.glance = cheap
        self._linear = linear
        self.places = places
        self.encoder = encoder
        self.middles = middles
        self.knn = knn
        self.pooling = pooling
        self.familiarities = familiarities

    def predict_fast(self, text: str, *, force: bool = False) -> Prediction | None:
        """The cheap heads' answer, or None where the encoder should be asked and nobody is in a hurry."""
        prediction = self.guess(self.glance(text))
        if self.sure(prediction):
            return prediction
        return replace(prediction, stage=LOAD_SHED) if force else None

    def predict(self, texts: Sequence[str], *, embeddings: Floats | None = None) -> list[Prediction]:
        """One Prediction a text; the encoder sees only those that `predict_fast` leaves open, none where `embeddings`
        are given: then all heads judge all texts."""
        if embeddings is not None:
            return self.conclude(self.study(texts, embeddings=embeddings)) if texts else []
        glances = [self.glance(text) for text in texts]
        found = [self.guess(glance) for glance in glances]
        unsure = [index for index, prediction in enumerate(found) if not self.sure(prediction)]
        if unsure:
            study = self.study([texts[index] for index in unsure], glances=[glances[index] for index in unsure])
            for index, prediction in zip(unsure, self.conclude(study), strict=True):
                found[index] = prediction
        return found

    def neighbours(self, text: str, *, limit: int) -> list[Neighbour]:
        """The exemplars of the encoder's space."""
        (vector,) = unit(self.knn.place(self.encoder.encode([text])))
        found = self.knn.nearest(vector, limit=limit)
        return [Neighbour(self.categories[label], similarity, digest) for label, similarity, digest in found]

    def sure(self, prediction: Prediction) -> bool:
        """Whether the cheap stage's answer may stand."""
        return prediction.confidence >= self.pooling.threshold

    def guess(self, glance: FastFeatures) -> Prediction:
        """The cheap stage's answer, sure or not."""
        posterior = self.pooling.join_cheap(glance.lexical, glance.static)
        return Prediction(posterior, "cheap", self.familiarities.cheap.of(glance.near))

    def conclude(self, study: HeadOutputs) -> list[Prediction]:
        """The full stage's answers."""
        posteriors = self.pooling.join_full(tuple(study.heads.values()))
        familiar = self.familiarities.full(study.similarity[:, None])
        return [Prediction(row, "full", float(f)) for row, f in zip(posteriors, familiar, strict=True)]

    def study(
        self, texts: Sequence[str], *, glances: Sequence[FastFeatures] | None = None, embeddings: Floats | None = None
    ) -> HeadOutputs:
        """One or more texts as all heads see them; `glances` are what the cheap ones saw, `embeddings` what the encoder
        did, where they did already."""
        glances = glances or [self.glance(text) for text in texts]
        embeddings = self.encoder.read(texts) if embeddings is None else embeddings
        vectors = embeddings[:, : self.encoder.dimensions]
        placed = self.knn.place(vectors)
        votes, similarity = self.knn.look(placed)
        heads = {
            "lexical": np.stack([glance.lexical for glance in glances]),
            "static": np.stack([glance.static for glance in glances]),
            "linear": self._linear.logits(embeddings),
            "knn": votes,
        }
        return HeadOutputs(heads, vectors, placed, similarity)


def read_config(folder: Path) -> dict[str, Any]:
    """router.json; ArtifactError when it is missing, damaged or of another format."""
    config = read_json(folder / CONFIG)
    if config.get("format") not in (2, 3, FORMAT):
        found = f"{folder / CONFIG}: format {config.get('format')!r}, not {FORMAT}"
        raise ArtifactError(f"{found}; train the router again with `coe train`")
    return config


def encoder_tokens(config: Mapping[str, Any]) -> int:
    """How many tokens of a text the encoder was trained to read."""
    return int(config.get("tokens", 256))  # 256: routers of before it was written down


def load_cascade(folder: Path, *, threads: int, version: str | None = None) -> CascadeRouter:
    """The CascadeRouter in `folder`, with `version` as its id or else a digest of its files; ArtifactError when a file
    is missing, damaged or of another format."""
    from routers.encoders import OnnxEncoder

    config = read_config(folder)
    version = version or content_version(folder, [CONFIG, *TABLES])
    tokenizer = load_tokenizer(folder / TOKENIZER)  # one for both: it takes 9 MB
    pieces = WordCachedTokenizer(tokenizer)
    encoder = OnnxEncoder(folder / NETWORK, tokenizer, threads=threads, tokens=encoder_tokens(config))
    try:
        categories, pooling = tuple(config["categories"]), EnsembleWeights(**config["pooling"])
        familiarities = InDistributionModels.from_json(config["familiarities"])
    except (AttributeError, KeyError, TypeError) as error:
        raise ArtifactError(f"{folder / CONFIG}: incomplete ({error!r}); train the router again") from error
    tables = {
        LEXICAL: read_arrays(folder / LEXICAL, "weights", "idf", "traits", "bias"),
        STATIC: read_arrays(folder / STATIC, "weights", "bias", "centroids", "means")
        | read_arrays(folder / STATIC, "tokens", widen=False),
        SEMANTIC: _semantic(folder / SEMANTIC, config, classes=len(categories)),
    }
    features, classes = LexicalFeatures(pieces), len(categories)
    _check_shapes(folder, tables, features=features, encoder=encoder, classes=classes)
    static, semantic = tables[STATIC], tables[SEMANTIC]
    places = StaticCentroids(centroids=static["centroids"], means=static["means"])
    return CascadeRouter(
        categories=categories,
        version=version,
        cheap=FastHeads(
            LexicalHead.from_arrays(tables[LEXICAL], features),
            StaticVectors(tokens=static["tokens"]),
            LinearHead.from_arrays(static),
            places,
        ),
        places=places,
        pooling=pooling,
        familiarities=familiarities,
        encoder=encoder,
        linear=LinearHead.from_arrays(semantic),
        middles=CategoryMeans(semantic["centre"], semantic["means"]),
        knn=KnnHead(
            semantic["axes"],
            semantic["vectors"],
            semantic["labels"],
            classes,
            _digests(folder, len(semantic["labels"])),
        ),
    )


def _semantic(file: Path, config: Mapping[str, Any], *, classes: int) -> Arrays:
    """The tables of the heads that the encoder is asked for; of a former format, what they lack made up for."""
    tables = read_arrays(file, "weights", "bias", "vectors", "labels")
    vectors, tables["labels"] = tables["vectors"], tables["labels"].astype(np.int64)
    if config["format"] == FORMAT:
        return tables | read_arrays(file, "axes", "centre", "means")
    axes = np.eye(vectors.shape[1], dtype=np.float32)
    return tables | {"axes": axes} | CategoryMeans.of(vectors, tables["labels"], classes=classes).arrays()


def _digests(folder: Path, exemplars: int) -> tuple[str, ...]:
    """Of the exemplars' texts; empty where the router was trained before they were written down."""
    if not (folder / EXEMPLARS).exists():
        return ()
    digests = read_json(folder / EXEMPLARS).get("digests")
    if not isinstance(digests, list) or len(digests) != exemplars:
        raise ArtifactError(f"{folder / EXEMPLARS}: not one digest an exemplar; train the router again")
    return tuple(map(str, digests))


def _check_shapes(
    folder: Path, tables: Mapping[str, Arrays], *, features: LexicalFeatures, encoder: OnnxEncoder, classes: int
) -> None:
    """ArtifactError unless the tables fit the tokenizer, the encoder and the categories."""
    lexical, static, semantic = (tables[name] for name in (LEXICAL, STATIC, SEMANTIC))
    expected = {
        LEXICAL: (lexical["weights"].shape, (features.rows, classes)),
        STATIC: ((len(static["tokens"]), len(static["bias"])), (features.pieces.size, classes)),
        SEMANTIC: (semantic["weights"].shape, (encoder.width, classes)),
        f"{SEMANTIC}: axes": (semantic["axes"].shape, (encoder.dimensions, semantic["vectors"].shape[1])),
        f"{SEMANTIC}: labels": (semantic["labels"].shape, semantic["vectors"].shape[:1]),
        f"{SEMANTIC}: centre": (semantic["centre"].shape, (encoder.dimensions,)),
        f"{SEMANTIC}: means": (semantic["means"].shape, (classes, encoder.dimensions)),
        f"{STATIC}: means": (static["means"].shape, (classes, static["tokens"].shape[1])),
    }
    for name, (found, wanted) in expected.items():
        if found != wanted:
            raise ArtifactError(f"{folder / name}: shape {found}, not {wanted} as asked; train the router again")
