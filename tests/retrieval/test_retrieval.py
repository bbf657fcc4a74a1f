"""Serving and fitting agree: the same posteriors, vectors, thresholds and order of the gate's steps."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import orjson
import pytest
from numpy.typing import NDArray

from coe.core import Prediction
from coe.measuring.gate_fit import GateExamples, fit_gate, gate_decisions, gate_estimates
from coe.registry.sections import RetrievalPrice, RetrievalSpec
from coe.retrieval.retrieval import Retrieval, RetrievalRequest
from gateway.dialects.chat import CHAT
from tests.retrieval.gates import CATEGORIES, WIDTH, ListRetriever, embeddings_of, passage

pytestmark = pytest.mark.anyio

COSINE = 0.6
PRICE = RetrievalPrice(per_thousand_tokens=0.1, per_second=0)


class RandomEncoder:
    """Returns a random vector for each text, always the same one."""

    dimensions = WIDTH

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        rows = [np.random.default_rng(zlib.crc32(text.encode())).normal(size=WIDTH) for text in texts]
        return np.array([row / np.linalg.norm(row) for row in rows], dtype=np.float32)

    def features(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return embeddings_of(self.encode(texts))


class TwoStageRouter:
    """A router whose encoder stage predicts other categories, with more confidence."""

    categories = CATEGORIES
    version = "two-stage"

    def predict_fast(self, text: str) -> Prediction:
        return self.predict([text])[0]

    def predict(
        self, texts: Sequence[str], *, embeddings: NDArray[np.float32] | None = None, encode: bool = False
    ) -> list[Prediction]:
        logits = RandomEncoder().encode(texts)[:, :3] if embeddings is None else 4 * embeddings[:, [1, 0, 2]]
        chances = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        return [Prediction(row, "fast" if embeddings is None else "encoder") for row in chances]


def sample_trials() -> GateExamples:
    """Passages mostly help where the encoder stage predicts the first category, and mostly harm for the second."""
    texts = [f"question {number}" for number in range(240)]
    embeddings = RandomEncoder().features(texts)
    likeliest = np.array([found.best for found in TwoStageRouter().predict(texts, embeddings=embeddings)])
    as_expected = np.random.default_rng(0).random(len(texts)) < 0.8
    without = np.where((likeliest == 0) == as_expected, 0.0, 1.0)
    with_ = np.where((likeliest == 1) == as_expected, 0.0, 1.0)
    costs = {"cosine": np.full(240, COSINE), "tokens": np.full(240, 400.0), "seconds": np.full(240, 0.01)}
    sides = {"without": without[:, None], "with_": with_[:, None]}
    return GateExamples.from_texts(texts, TwoStageRouter(), RandomEncoder(), experts=("small",), **sides, **costs)


async def test_serving_decides_as_the_fitted_gate_predicts() -> None:
    trials = sample_trials()
    gate = fit_gate(trials)
    chances, open_ = gate_estimates(gate, trials, evidence=True).helps[:, 0], gate_decisions(gate, trials, PRICE)[:, 0]
    assert 30 < open_.sum() < 210
    with ThreadPoolExecutor(1) as threads:
        retrieval = Retrieval(
            RetrievalSpec(price=PRICE),
            retriever=ListRetriever(passage("A passage.", score=COSINE)),
            encoder=RandomEncoder(),
            router=TwoStageRouter(),
            threads=threads,
            gate=gate,
        )
        for text, chance, yes in zip(trials.texts, chances, open_, strict=True):
            body = orjson.dumps({"model": "auto", "messages": [{"role": "user", "content": text}]})
            question = RetrievalRequest(
                CHAT.parse(body), text, TwoStageRouter().predict_fast(text), 0, 4096, None, "auto"
            )
            _, found = await retrieval.retrieve(question)
            assert (found.status == "used") == yes
            if yes:
                assert found.probability == pytest.approx(chance, abs=1e-6)
