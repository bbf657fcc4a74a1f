"""Fits the retrieval gate from answers with and without passages, and reports what it gains and costs.

It fits the same model twice: for answers that passages improve, and for answers that they spoil. The shared weights are
a ridge regression of the mean label over experts, centred by expert. They are shared because a question that is hard
for one expert is mostly hard for all. One logistic regression over all answers then calibrates them, and fits offsets
of experts, categories and pairs of both. Pairs are shrunk harder than categories, and these harder than experts. The
report compares never, always and gated retrieval as ExpertRAG does (arXiv 2504.08744), with costs in tokens of
passages. `coe plan` fits the gate where `coe score --retrieval both` has scored answers with passages.

Adds passages to probes as the gateway would, and stores what they change: gains.parquet.

`coe score --retrieval both` writes the file, and `coe plan` fits the retrieval gate on it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coe.core import Encoder, Router
from coe.errors import DataError
from coe.measuring.probes import Probe, json_digest
from coe.measuring.quality import column_means
from coe.measuring.tables import read_table, write_parquet
from coe.registry.sections import RetrievalPrice, RetrievalSpec
from coe.retrieval.gate import Array, Gate, GateEstimate, LogOddsModel, RetrievalCost, posterior_features, temper
from coe.retrieval.insertion import Retriever, format_passages, insert_block

GAINS_FILE = "gains.parquet"
_COLUMNS = ("prompt_id", "prompt", "model", "without", "with", "cosine", "tokens", "seconds")


@dataclass(frozen=True, slots=True)
class ProbeWithPassages:
    """A probe with passages added.

    `cosine` is that of the best passage, NaN without any; `tokens` is their estimated size, `seconds` the search time.
    """

    probe: Probe
    cosine: float
    tokens: int
    seconds: float


async def add_passages(
    probes: Iterable[Probe], declared: RetrievalSpec, *, retriever: Retriever, encoder: Encoder
) -> list[ProbeWithPassages]:
    """Each probe with passages of the declared store, as the gateway adds them under `x-coe-retrieval: on`.

    Raises RetrievalError.
    """
    found = []
    for probe in probes:
        began = time.perf_counter()
        vector = encoder.encode([probe.prompt])[0]
        passages = await retriever.search(
            probe.prompt, vector, collections=declared.collections, limit=declared.max_passages
        )
        seconds = time.perf_counter() - began
        similar = [passage for passage in passages if passage.score >= declared.min_similarity]
        block = format_passages(similar, budget=declared.max_tokens) if similar else None
        if block is None:
            found.append(ProbeWithPassages(probe, float("nan"), 0, seconds))
            continue
        fields = insert_block({"messages": list(probe.messages)}, "chat", block.text)
        assert fields is not None, "a probe ends with the user's words"
        digest = json_digest([probe.digest, block.text])
        given = replace(probe, messages=tuple(fields["messages"]), digest=digest)
        found.append(ProbeWithPassages(given, max(passage.score for passage in similar), block.tokens, seconds))
    return found


Gain = tuple[ProbeWithPassages, str, float | None, float | None]
"""The probe, the expert, and its scores without and with passages."""


def write_gains(folder: Path, gains: Iterable[Gain]) -> None:
    """Replace the file atomically."""
    rows = (
        (one.probe.prompt_id, one.probe.prompt, expert, without, with_, one.cosine, one.tokens, one.seconds)
        for one, expert, without, with_ in gains
    )
    write_parquet(folder / GAINS_FILE, [dict(zip(_COLUMNS, row, strict=True)) for row in rows])


def read_gains(folder: Path, experts: Sequence[str]) -> Callable[[Router, Encoder], GateExamples] | None:
    """The measurements of the declared `experts`, as a function of the router and the encoder in use.

    None without the file. Raises DataError for a damaged file.
    """
    path = folder / GAINS_FILE
    if not path.is_file():
        return None
    table = read_table(path, needed=_COLUMNS)
    pairs = list(zip(table.texts("prompt_id"), table.texts("model"), strict=True))
    ids = list(dict.fromkeys(prompt_id for prompt_id, name in pairs if name in experts))
    if not ids:
        raise DataError(f"{path}: holds no scores of the declared experts; score again")
    known = tuple(name for name in experts if name in {name for _, name in pairs})
    rows, prompts, models = table.cells(ids, known)
    scores = np.full((2, len(ids), len(known)), np.nan)
    scores[:, prompts, models] = [np.array(table.numbers(name))[rows] for name in ("without", "with")]
    first = rows[np.unique(prompts, return_index=True)[1]]
    columns: dict[str, Any] = {name: np.array(table.numbers(name))[first] for name in ("cosine", "tokens", "seconds")}
    texts = tuple(np.array(table.texts("prompt"), dtype=object)[first])
    return partial(GateExamples.from_texts, texts, experts=known, without=scores[0], with_=scores[1], **columns)


FOLDS = 5
PENALTIES = (10.0, 30.0, 100.0, 300.0)
FEATURE_SCALES = (0.15, 0.2)
"""Scales of the posterior and its entropy, each brought to unit spread, next to a unit vector."""
PAIR_SCALE, CATEGORY_SCALE = 0.03, 0.1
"""Scales of the offsets of pairs and of categories; the scale of experts is 1."""
MIN_QUESTIONS = 50
"""Questions that a gate needs. A fold less leaves MIN_TRAINING_QUESTIONS, since each fold is judged by a gate fitted to
the others."""
MIN_TRAINING_QUESTIONS = MIN_QUESTIONS * (FOLDS - 1) // FOLDS


@dataclass(frozen=True, slots=True, eq=False)
class GateExamples:
    """Training data of the gate: n questions, with scores of k experts with and without passages; m categories.

    `posterior` (n, m) and `vectors` (n, dimensions) are those of the served router and encoder, `full` (n, m) is the
    router's posterior given the vectors. `without` and `with_` (n, k) are scores from 0 to 1, NaN where missing.
    `cosine` (n,) is that of the best passage, NaN without any; `tokens` and `seconds` (n,) are the cost of the
    passages.
    """

    categories: tuple[str, ...]
    experts: tuple[str, ...]
    texts: tuple[str, ...]
    posterior: Array
    full: Array
    vectors: Array
    without: Array
    with_: Array
    cosine: Array
    tokens: Array
    seconds: Array

    @classmethod
    def from_texts(cls, texts: Sequence[str], router: Router, encoder: Encoder, **columns: Any) -> GateExamples:
        """Examples of these texts with the served router's posteriors, before and after an encoder pass."""
        embeddings = encoder.features(texts)
        posterior, full = (
            np.stack([found.probabilities for found in router.predict(texts, embeddings=known)]).astype(np.float64)
            for known in (None, embeddings)
        )
        vectors = embeddings[:, : encoder.dimensions].astype(np.float64)
        return cls(router.categories, texts=tuple(texts), posterior=posterior, full=full, vectors=vectors, **columns)

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def delta(self) -> Array:
        """The effect of passages on each score, shape (n, k), -1 to 1."""
        return np.asarray(self.with_ - self.without)

    def part(self, rows: NDArray[np.int64]) -> GateExamples:
        """The questions of these rows."""
        names = ("posterior", "full", "vectors", "without", "with_", "cosine", "tokens", "seconds")
        arrays: dict[str, Any] = {name: getattr(self, name)[rows] for name in names}
        return replace(self, texts=tuple(self.texts[row] for row in rows), **arrays)


def fit_gate(examples: GateExamples) -> Gate:
    """Fit a gate. Raises DataError where too few questions have both scores, or passages never or always helped."""
    delta = examples.delta
    known = np.isfinite(delta)
    if known.any(axis=1).sum() < MIN_TRAINING_QUESTIONS:
        raise DataError(f"a gate needs {MIN_QUESTIONS} questions or more that were answered with and without passages")
    if len(np.unique(delta[known] > 0)) < 2:
        raise DataError("passages always or never improved the answers: there is nothing for a gate to learn")
    gate = Gate(
        categories=examples.categories,
        experts=examples.experts,
        helps=_fit_odds(examples, np.where(known, np.maximum(delta, 0.0), np.nan)),
        harms=_fit_odds(examples, np.where(known, np.maximum(-delta, 0.0), np.nan)),
        measured=np.asarray(known.any(axis=0), dtype=np.float64),
        spread=np.zeros(len(examples.experts)),
        cost=RetrievalCost(*(float(column_means(one, 0.0)) for one in (examples.tokens, examples.seconds))),
    )
    gap = gate_estimates(gate, examples).gain - _fast_gains(gate, examples)
    return replace(gate, spread=np.sqrt(np.mean(gap**2, axis=0)))


def _fit_odds(examples: GateExamples, label: Array) -> LogOddsModel:
    """Fit the log-odds of a label (n, k), 0 to 1, NaN where it is unknown."""
    known, means = np.isfinite(label), column_means(label, 0.0)
    target = np.where(known, label - means, 0.0).sum(axis=1) / np.maximum(known.sum(axis=1), 1)
    fast, full = temper(examples.posterior), temper(examples.full)
    features = np.hstack([posterior_features(full), examples.vectors]).astype(np.float64)
    parts = []
    for inputs, posterior in ((posterior_features(fast), fast), (features, full)):
        weights, constant, held_out = _ridge(inputs, len(examples.categories), target)
        slope, offset = _fit_offsets(held_out, posterior, label)
        parts.append((weights * slope, offset + slope * constant, slope * held_out[:, None] + posterior @ offset))
    (fast_weights, fast_offset, _), (full_weights, full_offset, odds) = parts
    offsets = np.stack([fast_offset, full_offset])
    return LogOddsModel(fast_weights, full_weights, offsets, _evidence_weights(odds, examples.cosine, label))


def cross_fitted_gates(examples: GateExamples) -> Iterator[tuple[NDArray[np.int64], Gate]]:
    """Each fold's rows, and a gate that was fitted without them."""
    for rest, fold in _folds().split(examples.texts):
        yield fold, fit_gate(examples.part(rest))


def gate_estimates(gate: Gate, examples: GateExamples, *, evidence: bool = False) -> GateEstimate:
    """The gate's estimates for all examples (n, k), with an encoder pass; with `evidence` the best passage's cosine
    counts."""
    rows = zip(examples.full, examples.vectors, examples.cosine, strict=True)
    found = [
        gate.estimate(p, vector, cosine=float(cosine) if evidence and np.isfinite(cosine) else None)
        for p, vector, cosine in rows
    ]
    return GateEstimate(np.stack([one.helps for one in found]), np.stack([one.gain for one in found]))


def gate_decisions(gate: Gate, examples: GateExamples, price: RetrievalPrice) -> NDArray[np.bool_]:
    """The questions and experts (n, k) for which passages are added, decided as `Retrieval` decides it."""
    search_price, insert_price = gate.prices(price)
    is_promising = _fast_gains(gate, examples) + gate.spread > search_price
    before, after = gate_estimates(gate, examples), gate_estimates(gate, examples, evidence=True)
    found = np.isfinite(examples.cosine)[:, None]
    return is_promising & (before.gain > search_price) & found & (after.gain > insert_price)


def _fast_gains(gate: Gate, examples: GateExamples) -> Array:
    """Gains (n, k) by the fast estimate."""
    return np.stack([gate.estimate_fast(row).gain for row in examples.posterior])


def _folds() -> Any:
    from sklearn.model_selection import KFold

    return KFold(FOLDS, shuffle=True, random_state=0)


def _ridge(inputs: Array, categories: int, target: Array) -> tuple[Array, float, Array]:
    """Weights of the columns, the constant, and predictions that are held out by fold.

    The columns but those of vectors are scaled to the spread of their group before the common penalty.
    """
    from sklearn.linear_model import Ridge, RidgeCV
    from sklearn.model_selection import cross_val_predict

    wanted = np.repeat(FEATURE_SCALES, (categories, 1))
    spread = inputs[:, : len(wanted)].std(axis=0)
    scale = np.ones(inputs.shape[1])
    scale[: len(wanted)] = np.divide(wanted, spread, out=np.zeros_like(wanted), where=spread > 1e-6)
    model = RidgeCV(PENALTIES).fit(inputs * scale, target)
    held_out = cross_val_predict(Ridge(model.alpha_), inputs * scale, target, cv=_folds())
    return scale * model.coef_, float(model.intercept_), held_out


def _fit_offsets(need: Array, posterior: Array, label: Array) -> tuple[float, Array]:
    """The slope of the shared need and the offsets (m, k), by one logistic regression over all answers."""
    m, k = posterior.shape[1], label.shape[1]
    rows, columns = np.nonzero(np.isfinite(label))
    spread = max(float(need.std()), 1e-9)
    expert, category = np.eye(k)[columns], posterior[rows]
    pairs = (expert[:, :, None] * category[:, None, :]).reshape(len(rows), k * m)
    design = np.hstack([need[rows, None] / spread, expert, CATEGORY_SCALE * category, PAIR_SCALE * pairs])
    found, constant = _logistic(design, label[rows, columns])
    slope, of_expert, of_category, of_pair = np.split(found, [1, 1 + k, 1 + k + m])
    offset = constant + of_expert + CATEGORY_SCALE * of_category[:, None] + PAIR_SCALE * of_pair.reshape(k, m).T
    return max(float(slope[0]), 0.0) / spread, offset


def _evidence_weights(odds: Array, cosine: Array, label: Array) -> Array:
    """Weights of log-odds, cosine and a constant; (1, 0, 0) where too few cosines are known."""
    known = np.isfinite(label) & np.isfinite(cosine)[:, None]
    if known.sum() < MIN_TRAINING_QUESTIONS:
        return np.array([1.0, 0.0, 0.0])
    rows, columns = np.nonzero(known)
    found, constant = _logistic(np.stack([odds[rows, columns], 5 * cosine[rows]], axis=1), label[rows, columns])
    return np.array([max(found[0], 0.0), 5 * found[1], constant])


def _logistic(design: Array, label: Array) -> tuple[Array, float]:
    """Weights and constant of a logistic regression on labels 0 to 1; the constant alone where all labels are equal."""
    from sklearn.linear_model import LogisticRegression

    if len(np.unique(label)) < 2:
        rate = (label.sum() + 0.5) / (len(label) + 1)
        return np.zeros(design.shape[1]), float(np.log(rate / (1 - rate)))
    model = LogisticRegression(C=1.0, max_iter=500)
    model.fit(np.vstack([design, design]), np.repeat([1, 0], len(label)), np.concatenate([label, 1 - label]))
    return model.coef_[0], float(model.intercept_[0])


def gate_report(examples: GateExamples, price: RetrievalPrice) -> dict[str, Any]:
    """By expert and over all: quality and tokens of the three policies. Each question is judged by a gate that was
    fitted without it."""
    is_open = np.zeros(examples.delta.shape, dtype=bool)
    for rows, gate in cross_fitted_gates(examples):
        is_open[rows] = gate_decisions(gate, examples.part(rows), price)
    delta, tokens = examples.delta, np.broadcast_to(examples.tokens[:, None], is_open.shape)
    policies = {
        "never": examples.without,
        "always": examples.with_,
        "gated": np.where(is_open, examples.with_, examples.without),
        "opened": is_open,
        "tokens_always": tokens,
        "tokens_gated": np.where(is_open, tokens, 0.0),
    }

    def means(columns: Any) -> dict[str, float]:
        known = np.isfinite(delta[:, columns])
        found = {name: float(values[:, columns][known].mean()) for name, values in policies.items()}
        always = found["tokens_always"]
        return found | {"saved": 1 - found["tokens_gated"] / always if always else 0.0}

    experts = {name: means([column]) for column, name in enumerate(examples.experts)}
    return {"questions": len(examples), "all": means(slice(None)), "experts": experts}
