"""Fit the four heads: choose regularization, score held-out texts by cross-fitting, and write the served tables.

Two divisions into folds simulate two kinds of traffic. Random folds (`folds`) hold texts like those of training.
`topic_folds` hold whole topics, so their texts are as unfamiliar as those of users whom training has not met.
Out-of-scope texts are simulated too: each held-out text is scored a second time with its own category left out, as if
it belonged to a category that training has not seen.

Fit the ensemble on held-out scores: pool weights, in-distribution models, thresholds; and report the metrics.

`tune` chooses the parameters, `training_metrics` measures the cascade that results. Both use out-of-fold scores only
(see `routers.training.fitting`). Random folds decide everything but the temperatures: those are fitted on folds of
whole topics, because real traffic differs from the training texts, and heads are overconfident on what is new to them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from routers.calibration import (
    Floats,
    auroc,
    choose_confidence_threshold,
    choose_escalation_threshold,
    choose_separation_threshold,
    expected_calibration_error,
    fit_pool_weights,
    fit_temperature,
    log_loss,
    logarithmic_pool,
    reliability,
    risk_coverage,
)
from routers.cascade import LEXICAL, SEMANTIC, STATIC, EnsembleWeights, InDistributionModel, InDistributionModels
from routers.examples import write_arrays
from routers.heads import (
    CategoryMeans,
    KnnHead,
    LexicalFeatures,
    LexicalHead,
    LexicalMatrix,
    LinearHead,
    StaticVectors,
    class_means,
    fit_centroids,
    fit_knn,
    fit_lexical,
    fit_linear,
)

Labels = NDArray[np.int64]
Regularization = Mapping[str, float]
"""scikit-learn's C (inverse regularization) of each trained head."""
TRAINED_HEADS = ("lexical", "static", "linear")
"""The heads, as in Regularization and HeadScores."""
FOLDS = 5
MAX_EXEMPLARS = 6000
"""Exemplars of the kNN head, shared evenly among the categories."""
REGULARIZATION_GRID = (1.0, 3.0, 10.0, 30.0, 100.0)
"""Values of scikit-learn's C (inverse regularization) to choose from."""
SEED = 0
"""Seed of all random divisions, so that the same texts give the same router."""
KNN_BATCH_TEXTS = 1000
"""Texts scored against the exemplars at a time, which limits the matrix of cosines."""
EXCLUDED_LOGIT = -1e4
"""Logit of a category that is left out."""


@dataclass(frozen=True, slots=True)
class TrainingData:
    """Inputs of every head. The linear head uses all columns of the encoder's `embeddings`, the kNN head the sentence
    vectors, which are the first `dimensions` columns."""

    labels: Labels
    classes: int
    features: LexicalFeatures
    lexical: LexicalMatrix
    tokens: StaticVectors
    static: Floats
    embeddings: Floats
    dimensions: int

    @property
    def vectors(self) -> Floats:
        return self.embeddings[:, : self.dimensions]


@dataclass(frozen=True, slots=True)
class HeadScores:
    """Logits (n_texts, n_categories) of every head on some texts, and the texts' similarity to the training data.

    `fast_similarity` (n_texts, 2) is the input of the fast stage's in-distribution model, `similarity` (n_texts,) of
    the encoder stage's.
    """

    lexical: Floats
    static: Floats
    linear: Floats
    knn: Floats
    fast_similarity: Floats
    similarity: Floats

    @property
    def heads(self) -> tuple[Floats, Floats, Floats, Floats]:
        return self.lexical, self.static, self.linear, self.knn

    @classmethod
    def joined(cls, parts: Sequence[HeadScores], order: Labels) -> HeadScores:
        """Return the scores of all parts' texts in this order."""
        return cls(**{f.name: np.concatenate([getattr(part, f.name) for part in parts])[order] for f in fields(cls)})

    def part(self, rows: Labels) -> HeadScores:
        return self.joined([self], rows)


@dataclass(frozen=True, slots=True)
class HeldOutScores:
    """Scores of texts by heads that were not fitted on them: `in_scope` as they are, and `out_of_scope` with each
    text's own category left out of the heads."""

    in_scope: HeadScores
    out_of_scope: HeadScores

    def part(self, rows: Labels) -> HeldOutScores:
        return HeldOutScores(self.in_scope.part(rows), self.out_of_scope.part(rows))


def folds(labels: Labels) -> list[tuple[Labels, Labels]]:
    """Return stratified folds as (rest, held) indices. A class of two or more is present in every rest."""
    shuffled = np.random.default_rng(SEED).permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    fold = np.empty(len(labels), dtype=np.int64)
    fold[by_class] = np.arange(len(labels)) % FOLDS
    return [(np.flatnonzero(fold != f), np.flatnonzero(fold == f)) for f in range(min(FOLDS, len(labels)))]


def topic_folds(vectors: Floats, labels: Labels) -> list[tuple[Labels, Labels]]:
    """Return folds as (rest, held) indices, each of which holds one topic of every class.

    The topics of a class are FOLDS k-means clusters of its `vectors` (n_texts, dimensions). A class of too few distinct
    vectors is divided at random. A class of two or more texts is present in every rest.
    """
    from sklearn.cluster import KMeans

    fold = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        own = np.flatnonzero(labels == label)
        count = min(FOLDS, len(np.unique(vectors[own], axis=0)))
        topics = (
            KMeans(count, n_init=1, random_state=SEED).fit(vectors[own]).labels_ if count > 1 else np.arange(len(own))
        )
        fold[own] = topics % FOLDS
    return [(np.flatnonzero(fold != f), np.flatnonzero(fold == f)) for f in np.unique(fold)]


def choose_regularization(data: TrainingData) -> Regularization:
    """Return the C of each trained head with the lowest log loss (temperature fitted) on one fold."""
    rest, held = folds(data.labels)[0]
    labels = data.labels[held]

    def loss(head: str, c: float) -> float:
        logits = _trained_logits(head, data, rest, held, c)
        return log_loss(logits / np.float32(fit_temperature(logits, labels)), labels)

    return {head: min(REGULARIZATION_GRID, key=partial(loss, head)) for head in TRAINED_HEADS}


def _trained_logits(head: str, data: TrainingData, rest: Labels, held: Labels, c: float) -> Floats:
    if head == "lexical":
        fitted = _fit_lexical(data, rest, c)
        weights = np.concatenate((fitted.weights, fitted.dense))
        logits: Floats = data.lexical.matrix[held] @ weights + fitted.bias
        return logits
    vectors = data.static if head == "static" else data.embeddings
    return _fit_linear(vectors, data, rest, c).logits(vectors[held])


def cross_fit(
    data: TrainingData,
    regularization: Regularization,
    parts: Sequence[tuple[Labels, Labels]],
    *,
    report: Callable[[float], None],
) -> HeldOutScores:
    """Score every text by heads that were fitted on the other folds of `parts`."""
    scores = list[HeldOutScores]()
    for fold in parts:
        scores.append(_score_fold(data, regularization, fold))
        report(len(scores) / len(parts))
    order = np.argsort(np.concatenate([held for _, held in parts]))
    return HeldOutScores(
        in_scope=HeadScores.joined([part.in_scope for part in scores], order),
        out_of_scope=HeadScores.joined([part.out_of_scope for part in scores], order),
    )


def _score_fold(data: TrainingData, regularization: Regularization, fold: tuple[Labels, Labels]) -> HeldOutScores:
    """Return the scores of the held texts, by heads that were fitted on the rest."""
    rest, held = fold
    own = np.arange(len(held)), data.labels[held]
    inside = {head: _trained_logits(head, data, rest, held, regularization[head]) for head in TRAINED_HEADS}
    outside = {head: logits.copy() for head, logits in inside.items()}
    inside["knn"], similarity, outside["knn"], other_similarity = _score_knn(data, _fit_knn(data, rest), held)
    for logits in outside.values():
        logits[own] = EXCLUDED_LOGIT
    fast, other_fast = _fast_similarity(data, rest, held)
    return HeldOutScores(
        in_scope=HeadScores(**inside, fast_similarity=fast, similarity=similarity),
        out_of_scope=HeadScores(**outside, fast_similarity=other_fast, similarity=other_similarity),
    )


def _score_knn(data: TrainingData, knn: KnnHead, held: Labels) -> tuple[Floats, Floats, Floats, Floats]:
    """Return votes and similarity of the held texts, then both without the exemplars of each text's own category."""
    votes, similarity = _knn_scores(knn, data.vectors[held])
    other_votes, other_similarity = np.empty_like(votes), np.empty_like(similarity)
    for label in range(data.classes):
        own = data.labels[held] == label
        if own.any():
            other_votes[own], other_similarity[own] = _knn_scores(knn.without(label), data.vectors[held[own]])
    return votes, similarity, other_votes, other_similarity


def _knn_scores(knn: KnnHead, vectors: Floats) -> tuple[Floats, Floats]:
    starts = range(0, len(vectors), KNN_BATCH_TEXTS)
    votes, similarity = zip(*(knn.score(knn.project(vectors[i : i + KNN_BATCH_TEXTS])) for i in starts), strict=True)
    return np.concatenate(votes), np.concatenate(similarity)


def _fast_similarity(data: TrainingData, rest: Labels, held: Labels) -> tuple[Floats, Floats]:
    """Return the fast stage's similarities (n_held, 2) of the held texts, and those without each own category."""
    inside, outside = np.zeros((2, len(held), 2), dtype=np.float32)
    centroids, labels = fit_centroids(data.static[rest], data.labels[rest])
    cosines = data.static[held] @ centroids.T
    inside[:, 0] = cosines.max(axis=1)
    cosines[data.labels[held][:, None] == labels] = -1
    outside[:, 0] = cosines.max(axis=1)
    frequency = data.lexical.document_frequency(rest)
    inside[:, 1] = data.lexical.known_share(held, frequency)
    for label in range(data.classes):
        own = data.labels[held] == label
        others = frequency - data.lexical.document_frequency(rest[data.labels[rest] == label])
        outside[own, 1] = data.lexical.known_share(held[own], others)
    return inside, outside


def write_heads(data: TrainingData, regularization: Regularization, *, out: Path) -> Labels:
    """Fit every head on all texts and write its table. Returns the rows that the kNN head keeps as exemplars."""
    rows = np.arange(len(data.labels))
    linear = _fit_linear(data.embeddings, data, rows, regularization["linear"])
    static = _fit_linear(data.static, data, rows, regularization["static"])
    write_arrays(out / LEXICAL, _fit_lexical(data, rows, regularization["lexical"]).arrays())
    centroids, _ = fit_centroids(data.static, data.labels)
    means = class_means(data.static, data.labels, classes=data.classes)
    write_arrays(out / STATIC, {**data.tokens.arrays(), **static.arrays(), "centroids": centroids, "means": means})
    exemplars = _exemplar_rows(data, rows)
    encoder_means = CategoryMeans.of(data.vectors[exemplars], data.labels[exemplars], classes=data.classes)
    knn = _fit_knn(data, rows)
    write_arrays(out / SEMANTIC, {**linear.arrays(), **knn.arrays(), **encoder_means.arrays()})
    return exemplars


def _exemplar_rows(data: TrainingData, rows: Labels) -> Labels:
    """Return the `rows` that the kNN head keeps as exemplars, in its order: as many of each category, at random."""
    labels, each, random = data.labels[rows], max(1, MAX_EXEMPLARS // data.classes), np.random.default_rng(SEED)
    chosen = [random.permutation(np.flatnonzero(labels == label))[:each] for label in np.unique(labels)]
    order: Labels = np.sort(np.concatenate(chosen))
    return rows[order]


def _fit_lexical(data: TrainingData, rows: Labels, c: float) -> LexicalHead:
    part = LexicalMatrix(matrix=data.lexical.matrix[rows], idf=data.lexical.idf)
    return fit_lexical(part, data.labels[rows], data.features, c=c, classes=data.classes)


def _fit_linear(vectors: Floats, data: TrainingData, rows: Labels, c: float) -> LinearHead:
    return fit_linear(vectors[rows], data.labels[rows], c=c, classes=data.classes)


def _fit_knn(data: TrainingData, rows: Labels) -> KnnHead:
    exemplars = _exemplar_rows(data, rows)
    return fit_knn(data.vectors[exemplars], data.labels[exemplars], classes=data.classes)


MAX_ESCALATED_SHARE = 0.48
MAX_ACCURACY_LOSS = 0.002
MAX_AUROC_LOSS = 0.002
"""The fast stage keeps as many texts as these losses of accuracy and of out-of-scope AUROC allow, and at least
1 - MAX_ESCALATED_SHARE of them: more than half, so that the median latency is that of the fast heads
(docs/experiments/cascade-and-encoders.md)."""
MAX_REJECTED_SHARE = 0.05
"""In-scope texts that the suggested `confidence_threshold` may send to the general expert."""
OUT_OF_SCOPE_SHARE = 0.03
"""Assumed share of out-of-scope requests, which the data do not show. A higher value costs calibration."""


@dataclass(frozen=True, slots=True)
class CascadeOutputs:
    """Predictions of the cascade: `posterior` (n_texts, n_categories), its `confidence` and which are `escalated`."""

    posterior: Floats
    confidence: Floats
    escalated: NDArray[np.bool_]

    @property
    def best(self) -> Labels:
        best: Labels = self.posterior.argmax(axis=1)
        return best


def fit_in_distribution_model(in_scope: Floats, out_of_scope: Floats) -> InDistributionModel:
    """Fit the model on the features (n_texts, n_features) of held-out texts in scope and out of scope."""
    from sklearn.linear_model import LogisticRegression

    labels = np.arange(len(in_scope) + len(out_of_scope)) < len(in_scope)
    model = LogisticRegression(C=100, class_weight="balanced").fit(np.concatenate((in_scope, out_of_scope)), labels)
    prior = np.log((1 - OUT_OF_SCOPE_SHARE) / OUT_OF_SCOPE_SHARE)
    return InDistributionModel(weights=tuple(map(float, model.coef_[0])), bias=float(model.intercept_[0] + prior))


def tune(
    held_out: HeldOutScores, new_topics: HeadScores, labels: Labels
) -> tuple[EnsembleWeights, InDistributionModels]:
    """Fit pool weights, temperatures, in-distribution models and the escalation threshold.

    `held_out` are scores from random folds, `new_topics` those of the same texts from folds of whole topics.
    """
    inside, outside = held_out.in_scope, held_out.out_of_scope
    in_distribution = InDistributionModels(
        fast=fit_in_distribution_model(inside.fast_similarity, outside.fast_similarity),
        encoder=fit_in_distribution_model(inside.similarity[:, None], outside.similarity[:, None]),
    )
    ensemble = EnsembleWeights(
        fast=pool_weights(inside.heads[:2], new_topics.heads[:2], labels),
        encoder=pool_weights(inside.heads, new_topics.heads, labels),
        threshold=0.0,
    )
    threshold = _escalation_threshold(held_out, labels, ensemble, in_distribution)
    return replace(ensemble, threshold=threshold), in_distribution


def pool_weights(heads: Sequence[Floats], new_topics: Sequence[Floats], labels: Labels) -> tuple[float, ...]:
    """Return the weights of the pool of `heads`, divided by the temperature of the same pool on `new_topics`."""
    weights = fit_pool_weights(heads, labels)
    temperature = fit_temperature(logarithmic_pool(new_topics, weights), labels)
    return tuple(weight / temperature for weight in weights)


def simulate_cascade(
    scores: HeadScores, ensemble: EnsembleWeights, in_distribution: InDistributionModels
) -> CascadeOutputs:
    """Predict as CascadeRouter does for texts with these `scores`."""
    fast, fast_confidence, encoder, encoder_confidence = _stages(scores, ensemble, in_distribution)
    escalated = fast_confidence < ensemble.threshold
    return CascadeOutputs(
        posterior=np.where(escalated[:, None], encoder, fast),
        confidence=np.where(escalated, encoder_confidence, fast_confidence),
        escalated=escalated,
    )


def _stages(
    scores: HeadScores, ensemble: EnsembleWeights, in_distribution: InDistributionModels
) -> tuple[Floats, Floats, Floats, Floats]:
    """Return posterior and confidence of the fast stage, then those of the encoder stage."""
    fast, encoder = ensemble.fast_posterior(scores.lexical, scores.static), ensemble.encoder_posterior(scores.heads)
    fast_confidence = fast.max(axis=1) * in_distribution.fast(scores.fast_similarity)
    encoder_confidence = encoder.max(axis=1) * in_distribution.encoder(scores.similarity[:, None])
    return fast, fast_confidence, encoder, encoder_confidence


def _escalation_threshold(
    held_out: HeldOutScores, labels: Labels, ensemble: EnsembleWeights, in_distribution: InDistributionModels
) -> float:
    """Return the lowest confidence at which the fast prediction is kept, so that neither accuracy nor the separation
    of out-of-scope texts suffers."""
    fast, fast_confidence, encoder, encoder_confidence = _stages(held_out.in_scope, ensemble, in_distribution)
    _, outside_fast, _, outside_encoder = _stages(held_out.out_of_scope, ensemble, in_distribution)
    for_accuracy = choose_escalation_threshold(
        fast_confidence,
        fast.argmax(axis=1) == labels,
        encoder.argmax(axis=1) == labels,
        max_escalated=MAX_ESCALATED_SHARE,
        max_loss=MAX_ACCURACY_LOSS,
    )
    if fast.shape[1] == 2:  # without its own category, a text has one left, of probability 1
        outside_fast *= fast.max(axis=1).mean()
        outside_encoder *= encoder.max(axis=1).mean()
    for_separation = choose_separation_threshold(
        np.concatenate((fast_confidence, outside_fast)),
        np.concatenate((encoder_confidence, outside_encoder)),
        np.repeat([True, False], len(labels)),
        max_escalated=MAX_ESCALATED_SHARE,
        max_loss=MAX_AUROC_LOSS,
    )
    return max(for_accuracy, for_separation)


def training_metrics(
    held_out: HeldOutScores,
    new_topics: HeadScores,
    labels: Labels,
    categories: Sequence[str],
    ensemble: EnsembleWeights,
    in_distribution: InDistributionModels,
) -> dict[str, Any]:
    """Return held-out accuracy, calibration, escalation and out-of-scope detection of the cascade and its parts.

    `ece`, `reliability` and `accuracy_on_new_topics` are of topics that were left out, all other metrics
    of random folds.
    `confidence_threshold` is the suggested confidence below which the general expert answers; `rejected` and
    `rejected_out_of_scope` are the shares of in-scope and simulated out-of-scope texts below it.
    """
    inside, outside = (
        simulate_cascade(scores, ensemble, in_distribution) for scores in (held_out.in_scope, held_out.out_of_scope)
    )
    correct = inside.best == labels
    confidence = np.concatenate((inside.confidence, outside.confidence))
    in_scope = np.repeat([True, False], len(labels))
    confidence_threshold = choose_confidence_threshold(
        confidence, np.concatenate((correct, np.zeros_like(correct))), in_scope, max_rejected=MAX_REJECTED_SHARE
    )
    confusion = np.zeros((len(categories), len(categories)), dtype=int)  # by true (row) and predicted category
    np.add.at(confusion, (labels, inside.best), 1)
    new = simulate_cascade(new_topics, ensemble, in_distribution)
    new_correct = new.best == labels
    return {
        "accuracy_on_new_topics": float(new_correct.mean()),
        "ece": expected_calibration_error(new.confidence, new_correct),
        "reliability": reliability(new.confidence, new_correct),
        "accuracy": float(correct.mean()),
        "accuracy_by_category": {name: float(correct[labels == i].mean()) for i, name in enumerate(categories)},
        "escalated": float(inside.escalated.mean()),
        "threshold": ensemble.threshold,
        "risk_coverage": risk_coverage(inside.confidence, correct),
        "confusion": {"categories": list(categories), "counts": confusion.tolist()},
        "out_of_scope_auroc": auroc(confidence, in_scope),
        "confidence_threshold": confidence_threshold,
        "rejected": float((inside.confidence < confidence_threshold).mean()),
        "rejected_out_of_scope": float((outside.confidence < confidence_threshold).mean()),
    }
