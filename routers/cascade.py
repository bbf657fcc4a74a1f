"""The served router: a cascade of fast heads and a sentence encoder.

Stage `fast` pools a lexical and a static head (about 0.1 ms). Below a confidence threshold, stage `encoder` adds a
linear and a nearest-neighbour head on the encoder's embeddings (milliseconds). Confidence is the calibrated posterior
times the in-distribution probability. A text that is not English takes one pass of `routers.multilingual` instead of
both stages. Corrected prompts (`routers.corrections`) apply in every stage. This module also loads a router's folder
and checks that its files match.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from pydantic import TypeAdapter, ValidationError

from coe.core import ENGLISH, FAST_UNCERTAIN, UNDETERMINED, Encoder, Neighbour, Prediction
from coe.errors import ArtifactError
from routers.calibration import Floats, logarithmic_pool
from routers.corrections import ENCODER_RANGE, STATIC_RANGE, Corrections, follow
from routers.examples import Arrays, content_version, prompt_digest, read_arrays, read_json
from routers.heads import (
    CategoryMeans,
    FastFeatures,
    FastHeads,
    KnnHead,
    LexicalFeatures,
    LexicalHead,
    LinearHead,
    StaticCentroids,
    StaticVectors,
    softmax,
    unit,
)
from routers.multilingual import MultilingualHead, MultilingualStage, is_installed
from routers.tokens import WordCachedTokenizer, load_tokenizer

if TYPE_CHECKING:
    from routers.encoders import OnnxEncoder

FORMAT = 7
"""Version of the folder's layout. Folders of another format are rejected."""
CONFIG, TOKENIZER, NETWORK = "router.json", "tokenizer.json", "encoder.onnx"
LEXICAL, STATIC, SEMANTIC = "lexical.npz", "static.npz", "semantic.npz"
MULTILINGUAL_HEAD = "multilingual.npz"
"""Absent if the extra `multilingual` was not installed in training."""
EXEMPLARS = "exemplars.json"
"""Digests of the texts behind the exemplars of SEMANTIC, used in explanations only."""
HELD_OUT = "held_out.json"
"""The category predicted for each given text of the English heads, by heads not fitted on it; by the text's digest."""
VERSIONED_FILES = (CONFIG, TOKENIZER, NETWORK, LEXICAL, STATIC, SEMANTIC)

FAST, ENCODER, MULTILINGUAL = "fast", "encoder", "multilingual"
"""Values of `Prediction.stage`."""


@dataclass(frozen=True, slots=True)
class EnsembleWeights:
    """Weights of each stage's logarithmic pool, which include the calibration, and the escalation `threshold`.

    `fast` weighs (lexical, static), `encoder` weighs (lexical, static, linear, knn). A fast prediction with a lower
    confidence than `threshold` is escalated to the encoder.
    """

    fast: tuple[float, ...]
    encoder: tuple[float, ...]
    threshold: float

    def fast_posterior(self, lexical: Floats, static: Floats) -> Floats:
        """Return the posterior from logits (n_categories,) or (n_texts, n_categories), in the same shape."""
        return softmax(self.fast[0] * lexical + self.fast[1] * static)

    def encoder_posterior(self, heads: Sequence[Floats]) -> Floats:
        """Return the posterior (n_texts, n_categories) from the logits of all heads."""
        return softmax(logarithmic_pool(heads, self.encoder))


@dataclass(frozen=True, slots=True)
class InDistributionModel:
    """A logistic model over similarity features: one of `weights` for each feature, and `bias`."""

    weights: tuple[float, ...]
    bias: float

    def of(self, similarity: Sequence[float]) -> float:
        """Return the probability of one text from its features (n_features,)."""
        return 1 / (1 + math.exp(-sum(map(operator.mul, self.weights, similarity)) - self.bias))

    def __call__(self, similarity: Floats) -> Floats:
        """Return the probabilities (n_texts,) from features (n_texts, n_features)."""
        logit = similarity @ np.array(self.weights, dtype=np.float32) + np.float32(self.bias)
        result: Floats = 1 / (1 + np.exp(-logit))
        return result


@dataclass(frozen=True, slots=True)
class InDistributionModels:
    """The in-distribution model of each stage.

    `fast` uses the cosine to the nearest centroid of static vectors and the share of known terms; `encoder` uses the
    cosine to the nearest exemplars in the encoder's space.
    """

    fast: InDistributionModel
    encoder: InDistributionModel


@dataclass(frozen=True, slots=True)
class RouterConfig:
    """The file router.json. `tokens` is the largest number that the encoder reads of a text; with `multilingual`, the
    folder has a head for other languages."""

    categories: tuple[str, ...]
    tokens: int
    multilingual: bool
    ensemble: EnsembleWeights
    in_distribution: InDistributionModels
    format: int = FORMAT


@dataclass(frozen=True, slots=True)
class HeadOutputs:
    """Outputs of all heads for some texts.

    `logits` (n_texts, n_categories) by head, the encoder's `features` (n_texts, width), of which the sentence `vectors`
    (n_texts, dimensions) come first, the same `projected` to the nearest-neighbour axes (n_texts, n_axes), and
    `similarity` to the nearest exemplars (n_texts,).
    """

    logits: dict[str, Floats]
    features: Floats
    vectors: Floats
    projected: Floats
    similarity: Floats


@dataclass(eq=False, repr=False)
class CascadeRouter:
    """A coe.core.Router over four heads. Thread-safe."""

    categories: tuple[str, ...]
    version: str
    fast_heads: FastHeads
    static_centroids: StaticCentroids
    encoder: Encoder
    linear: LinearHead
    knn: KnnHead
    category_means: CategoryMeans
    ensemble: EnsembleWeights
    in_distribution: InDistributionModels
    multilingual: MultilingualStage | None
    corrections: Corrections | None = None

    def predict_fast(self, text: str) -> Prediction:
        """As Router.predict_fast."""
        features = self.fast_heads(text)
        return self._follow_by_words(self.fast_prediction(features), features)

    def predict(
        self, texts: Sequence[str], *, embeddings: Floats | None = None, encode: bool = False
    ) -> list[Prediction]:
        """Predict every text, in order. The encoder runs only for texts that `predict_fast` leaves open. With `encode`
        it runs for all English texts, and their predictions have its features. Given `embeddings` (n_texts, width), all
        heads score the English texts and the encoder does not run."""
        features = [self.fast_heads(text) for text in texts]
        predictions = [self._follow_by_words(self.fast_prediction(one), one) for one in features]
        languages = {index: UNDETERMINED for index, one in enumerate(features) if one.foreign}
        done = set[int]()
        for index in languages:
            found = self.multilingual.classify(texts[index]) if self.multilingual is not None else None
            if found is None:
                continue
            languages[index], posterior = found
            if posterior is not None:
                prediction = self.multilingual_prediction(posterior, languages[index])
                predictions[index] = self._follow_by_words(prediction, features[index])
                done.add(index)
        every = encode or embeddings is not None
        if rows := [i for i, one in enumerate(predictions) if i not in done and (every or one.stage == FAST_UNCERTAIN)]:
            known = None if embeddings is None else embeddings[rows]
            outputs = self.head_outputs([texts[i] for i in rows], [features[i] for i in rows], known)
            for row, (index, prediction) in enumerate(zip(rows, self.encoder_predictions(outputs), strict=True)):
                language = languages.get(index, ENGLISH)
                predictions[index] = prediction = replace(
                    prediction,
                    in_distribution=prediction.in_distribution * _shared_words(features[index], language),
                    language=language,
                    features=outputs.features[row] if encode else None,
                )
                near = self.corrections and self.corrections.nearest(self.corrections.vectors @ outputs.vectors[row])
                if near and near.similarity > outputs.similarity[row]:  # nearer than the training data
                    predictions[index] = follow(prediction, near, ENCODER_RANGE, self.categories)
        return predictions

    def correct(self, pairs: Sequence[tuple[str, str]]) -> None:
        """Replace the corrections by one or more (prompt, category) pairs."""
        texts, names = zip(*pairs, strict=True)
        centre = self.static_centroids.centroids.mean(axis=0)
        static = unit(np.stack([self.fast_heads(text).vector for text in texts]) - centre)
        digests = np.array([prompt_digest(text) for text in texts])
        self.corrections = Corrections(self.encoder.encode(texts), static, centre, np.array(names), digests)

    def _follow_by_words(self, prediction: Prediction, features: FastFeatures) -> Prediction:
        """Apply the nearest correction; a fast prediction of another category then becomes uncertain."""
        if self.corrections is None:
            return prediction
        near = self.corrections.by_words(features.vector)
        result = follow(prediction, near, STATIC_RANGE, self.categories)
        keeps = result.correction is None or near.category == self.categories[prediction.best]
        return result if keeps or result.stage != FAST else replace(result, stage=FAST_UNCERTAIN)

    def multilingual_prediction(self, posterior: Floats, language: str) -> Prediction:
        """Return the prediction of the multilingual stage."""
        return Prediction(posterior, MULTILINGUAL, language=language)

    def neighbours(self, text: str, *, limit: int) -> list[Neighbour]:
        """Return the nearest exemplars in the encoder's space, nearest first."""
        (vector,) = unit(self.knn.project(self.encoder.encode([text])))
        found = self.knn.nearest(vector, limit=limit)
        return [Neighbour(self.categories[label], similarity, digest) for label, similarity, digest in found]

    def fast_prediction(self, features: FastFeatures) -> Prediction:
        """Return the fast stage's prediction, of stage FAST_UNCERTAIN if it is below the escalation threshold or if the
        text is for the multilingual stage. Without that stage, a text in another script takes no pass of the English
        encoder, which knows as little about it."""
        posterior = self.ensemble.fast_posterior(features.lexical, features.static)
        in_distribution, language = self.in_distribution.fast.of(features.similarity), ENGLISH
        has_multilingual = self.multilingual is not None and self.multilingual.usable
        if features.foreign:
            language = UNDETERMINED
            in_distribution *= _shared_words(features, language)
        prediction = Prediction(posterior, FAST, in_distribution, language=language)
        confident = features.other_script or prediction.confidence >= self.ensemble.threshold
        if confident and not (features.foreign and has_multilingual):
            return prediction
        return Prediction(posterior, FAST_UNCERTAIN, in_distribution, language=language)

    def encoder_predictions(self, outputs: HeadOutputs) -> list[Prediction]:
        """Return the encoder stage's predictions."""
        posteriors = self.ensemble.encoder_posterior(tuple(outputs.logits.values()))
        in_distribution = self.in_distribution.encoder(outputs.similarity[:, None])
        return [Prediction(row, ENCODER, float(p)) for row, p in zip(posteriors, in_distribution, strict=True)]

    def head_outputs(
        self, texts: Sequence[str], features: Sequence[FastFeatures] | None = None, embeddings: Floats | None = None
    ) -> HeadOutputs:
        """Run all heads on one or more texts. Fast `features` and `embeddings` that are given are not recomputed."""
        features = features or [self.fast_heads(text) for text in texts]
        embeddings = self.encoder.features(texts) if embeddings is None else embeddings
        vectors = embeddings[:, : self.encoder.dimensions]
        projected = self.knn.project(vectors)
        votes, similarity = self.knn.score(projected)
        logits = {
            "lexical": np.stack([one.lexical for one in features]),
            "static": np.stack([one.static for one in features]),
            "linear": self.linear.logits(embeddings),
            "knn": votes,
        }
        return HeadOutputs(logits, embeddings, vectors, projected, similarity)


def _shared_words(features: FastFeatures, language: str) -> float:
    """Return the share of terms (0 to 1) that the English heads know, which limits their confidence in a text of
    another language; 1 for English."""
    return 1.0 if language == ENGLISH else features.similarity[1]


def read_config(folder: Path) -> RouterConfig:
    """Read router.json. Raises ArtifactError if it is missing, damaged or of another format."""
    config = read_json(folder / CONFIG)
    if config.get("format") != FORMAT:
        found = f"{folder / CONFIG}: format {config.get('format')!r}, not {FORMAT}"
        raise ArtifactError(f"{found}; train the router again with `coe train`")
    try:
        return TypeAdapter(RouterConfig).validate_python(config)
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"]))
        raise ArtifactError(f"{folder / CONFIG}: {where} is missing or damaged; train the router again") from error


def load_cascade(folder: Path, *, threads: int, version: str | None = None) -> CascadeRouter:
    """Load the router in `folder`, with `version` as its id or else a digest of its files.

    Raises ArtifactError if a file is missing, damaged or of another format.
    """
    from routers.encoders import OnnxEncoder

    config = read_config(folder)
    multilingual = _read_multilingual(folder, len(config.categories)) if config.multilingual else None
    version = version or content_version(folder, [*VERSIONED_FILES, *([MULTILINGUAL_HEAD] if multilingual else [])])
    tokenizer = load_tokenizer(folder / TOKENIZER)  # shared, because it takes 9 MB
    encoder = OnnxEncoder(folder / NETWORK, tokenizer, threads=threads, tokens=config.tokens)
    features = LexicalFeatures(WordCachedTokenizer(tokenizer))
    tables = {
        LEXICAL: read_arrays(folder / LEXICAL, "weights", "idf", "dense", "bias"),
        STATIC: read_arrays(folder / STATIC, "tokens", "scales", "weights", "bias", "centroids", "means"),
        SEMANTIC: read_arrays(folder / SEMANTIC, "weights", "bias", "vectors", "labels", "axes", "centre", "means"),
    }
    _check_shapes(folder, tables, features=features, encoder=encoder, classes=len(config.categories))
    static, semantic = tables[STATIC], tables[SEMANTIC]
    digests = read_json(folder / EXEMPLARS).get("digests")
    if not isinstance(digests, list) or len(digests) != len(semantic["labels"]):
        raise ArtifactError(f"{folder / EXEMPLARS}: not one digest an exemplar; train the router again")
    semantic["labels"] = semantic["labels"].astype(np.int64)
    centroids = StaticCentroids(centroids=static["centroids"], means=static["means"])
    lexical = LexicalHead.from_arrays(tables[LEXICAL], features)
    return CascadeRouter(
        categories=config.categories,
        version=version,
        fast_heads=FastHeads(lexical, StaticVectors.from_arrays(static), LinearHead.from_arrays(static), centroids),
        static_centroids=centroids,
        encoder=encoder,
        linear=LinearHead.from_arrays(semantic),
        knn=KnnHead(
            semantic["axes"], semantic["vectors"], semantic["labels"], len(config.categories), tuple(map(str, digests))
        ),
        category_means=CategoryMeans(semantic["centre"], semantic["means"]),
        ensemble=config.ensemble,
        in_distribution=config.in_distribution,
        multilingual=MultilingualStage(multilingual) if multilingual is not None and is_installed() else None,
        corrections=Corrections.read(folder),
    )


def _read_multilingual(folder: Path, classes: int) -> MultilingualHead:
    """Return the head for texts in other languages."""
    head = MultilingualHead.from_arrays(
        read_arrays(folder / MULTILINGUAL_HEAD, "weights", "bias", "direction", "probe", "network")
    )
    shape, expected = head.linear.weights.shape, (len(head.direction), classes)
    if shape != expected or head.probe.shape != head.direction.shape:
        raise ArtifactError(f"{folder / MULTILINGUAL_HEAD}: shape {shape}, not {expected}; train the router again")
    return head


def _check_shapes(
    folder: Path, tables: Mapping[str, Arrays], *, features: LexicalFeatures, encoder: OnnxEncoder, classes: int
) -> None:
    """Raise ArtifactError unless the tables fit the tokenizer, the encoder and the categories."""
    lexical, static, semantic = (tables[name] for name in (LEXICAL, STATIC, SEMANTIC))
    vocabulary = features.tokenizer.vocabulary_size
    expected = {
        LEXICAL: (lexical["weights"].shape, (features.rows, classes)),
        STATIC: ((len(static["tokens"]), len(static["bias"])), (vocabulary, classes)),
        f"{STATIC}: scales": (static["scales"].shape, (vocabulary,)),
        SEMANTIC: (semantic["weights"].shape, (encoder.width, classes)),
        f"{SEMANTIC}: axes": (semantic["axes"].shape, (encoder.dimensions, semantic["vectors"].shape[1])),
        f"{SEMANTIC}: labels": (semantic["labels"].shape, semantic["vectors"].shape[:1]),
        f"{SEMANTIC}: centre": (semantic["centre"].shape, (encoder.dimensions,)),
        f"{SEMANTIC}: means": (semantic["means"].shape, (classes, encoder.dimensions)),
        f"{STATIC}: means": (static["means"].shape, (classes, static["tokens"].shape[1])),
    }
    for name, (shape, wanted) in expected.items():
        if shape != wanted:
            raise ArtifactError(f"{folder / name}: shape {shape}, not {wanted} as expected; train the router again")
