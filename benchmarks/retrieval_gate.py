"""The retrieval gate on public questions: AUROC on measured labels, a small model end to end, and latency when closed.

    python benchmarks/retrieval_gate.py --data DIR --router FOLDER --work FOLDER --json FILE

DIR holds retrieval/ and quality/ in parquet, FOLDER a trained router. Answers of the model are stored in --work:
an interrupted run continues, and --no-ask reports on the answers stored so far.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

import routers
from benchmarks.passage_answers import AnsweredQuestion, answered, questions_of
from coe.core import Prediction
from coe.measuring.gate_fit import GateExamples, fit_gate, gate_decisions, gate_estimates
from coe.registry.sections import RetrievalPrice, RetrievalSpec
from coe.retrieval.ingest.indexing import Indexer, SourceText, encoder_id
from coe.retrieval.passages import DocumentKey
from coe.retrieval.retrieval import Retrieval
from coe.retrieval.store import open_store
from routers.calibration import auroc, expected_calibration_error

NATURAL = "llmrouter_natural_qa"
SMALL = ("gemma-2-9b-it", "llama-3.1-8b-instruct", "mistral-7b-instruct-v0.3", "qwen2.5-7b-instruct")
SEEDS = 5


def rows_of(path: Path) -> list[dict[str, Any]]:
    return pq.read_table(path).to_pylist()


def natural(data: Path, router: Any, encoder: Any) -> dict[str, Any]:
    """5-fold AUROC against needs_retrieval; an expert that fails alone counts as one that passages would help."""
    rows = [row for row in rows_of(data / "retrieval" / "questions_train.parquet") if row["source"] == NATURAL]
    prompts = {row["prompt_id"]: row["prompt"].strip() for row in rows_of(data / "quality" / "prompts.parquet")}
    scores: dict[str, dict[str, float]] = {}
    for row in rows_of(data / "quality" / "scores.parquet"):
        if row["benchmark"] == "llmrouter9":
            scores.setdefault(prompts[row["prompt_id"]], {})[row["model"]] = row["score"]
    experts = tuple(sorted({model for found in scores.values() for model in found}))
    alone = np.array([[scores[row["question"].strip()][name] for name in experts] for row in rows])
    trials = _trials([row["question"] for row in rows], router, encoder, experts=experts, without=alone)
    label = np.array([row["needs_retrieval"] for row in rows])
    small = [experts.index(name) for name in SMALL]
    with_encoder, fast_only, errors = [], [], []
    for seed in range(SEEDS):
        found, fast = np.zeros((2, len(rows)))
        outcomes = []
        folds = _stratified(label, seed)
        for fold in folds:
            gate = fit_gate(trials.part(np.setdiff1d(np.arange(len(rows)), fold)), seed=seed)
            chance = gate_estimates(gate, trials.part(fold)).helps[:, small]
            found[fold] = chance.mean(axis=1)
            fast[fold] = [gate.estimate_fast(row).helps[small].mean() for row in trials.posterior[fold]]
            outcomes.append((chance.ravel(), alone[np.ix_(fold, small)].ravel() < 0.5))
        with_encoder.append(np.mean([auroc(found[f].astype(np.float32), label[f] == 1) for f in folds]))
        fast_only.append(np.mean([auroc(fast[f].astype(np.float32), label[f] == 1) for f in folds]))
        chance, failed = (np.concatenate(part) for part in zip(*outcomes, strict=True))
        errors.append(expected_calibration_error(chance.astype(np.float32), failed))
    return {
        "questions": int((label >= 0).sum()),
        "auroc": float(np.mean(with_encoder)),
        "auroc_std_over_seeds": float(np.std(with_encoder)),
        "auroc_fast": float(np.mean(fast_only)),
        "ece": float(np.mean(errors)),
    }


def _stratified(label: Any, seed: int) -> list[Any]:
    """Five folds of the labelled questions; those without a clear label are fitted on alone."""
    random = np.random.default_rng(seed)
    parts = [np.array_split(random.permutation(np.flatnonzero(label == kind)), 5) for kind in (0, 1)]
    return [np.concatenate(pair) for pair in zip(*parts, strict=True)]


async def end_to_end(data: Path, router: Any, encoder: Any, *, work: Path, ask: bool) -> dict[str, Any]:
    """Never, always and gated on the questions that the gate was not fitted to."""
    store = open_store("lancedb:///store", base=work, encoder=encoder_id(encoder))
    docs = rows_of(data / "retrieval" / "docs.parquet")
    if ask:
        await Indexer(store, encoder).add(document_texts(docs))
    questions = questions_of(rows_of(data / "retrieval" / "questions_train.parquet"))
    found = await answered(questions, store, encoder, folder=work, ask=ask)
    await store.aclose()
    fit, judged = ([one for one in found if one.question.train is part] for part in (True, False))
    gate = fit_gate(_tried(fit, router, encoder))
    trials = _tried(judged, router, encoder)
    open_ = gate_decisions(gate, trials, RetrievalPrice())[:, 0]
    report = {"all": _policies(judged, open_)}
    for kind in sorted({one.question.kind for one in judged}):
        of = np.array([one.question.kind == kind for one in judged])
        report[kind] = _policies([one for one, yes in zip(judged, of, strict=True) if yes], open_[of])
    return report | {"fitted_to": len(fit)}


async def document_texts(docs: list[dict[str, Any]]) -> AsyncIterator[SourceText]:
    """Yield the documents of docs.parquet."""
    for doc in docs:
        yield SourceText(DocumentKey(doc["doc_id"], doc["source"]), doc["text"], doc["doc_id"])


def _trials(
    texts: list[str], router: Any, encoder: Any, *, experts: tuple[str, ...], without: Any, **measured: Any
) -> GateExamples:
    """As served; passages make every answer right where nothing else was `measured`."""
    nothing = dict.fromkeys(("cosine", "tokens", "seconds"), np.full(len(texts), np.nan))
    rest = {"experts": experts, "without": without, "with_": np.ones_like(without)} | nothing | measured
    return GateExamples.from_texts(texts, router, encoder, **rest)


def _tried(found: list[AnsweredQuestion], router: Any, encoder: Any) -> GateExamples:
    without, with_ = (np.array([[getattr(one, name)] for one in found]) for name in ("without", "with_"))
    tokens, seconds = (np.array([float(getattr(one, name)) for one in found]) for name in ("tokens", "seconds"))
    cosine = np.array([max(one.cosines, default=np.nan) for one in found])
    measured = {"with_": with_, "cosine": cosine, "tokens": tokens, "seconds": seconds}
    texts = [one.question.text for one in found]
    return _trials(texts, router, encoder, experts=("small",), without=without, **measured)


def _policies(found: list[AnsweredQuestion], is_open: Any) -> dict[str, float]:
    without, with_, tokens = (
        np.array([getattr(one, name) for one in found]) for name in ("without", "with_", "tokens")
    )
    return {
        "questions": len(found),
        "never": float(without.mean()),
        "always": float(with_.mean()),
        "gated": float(np.where(is_open, with_, without).mean()),
        "opened": float(is_open.mean()),
        "token_share": float(tokens[is_open].sum() / tokens.sum()),
    }


def closed_gate_ms(trials: GateExamples) -> float:
    """Median milliseconds that a closed gate adds to a request: two fast estimates."""
    gate = fit_gate(trials)
    unused: Any = None
    retrieval = Retrieval(RetrievalSpec(), retriever=unused, encoder=unused, router=unused, threads=unused, gate=gate)
    times = []
    for row in np.tile(trials.posterior, (20, 1))[:5000]:
        prediction = Prediction(row.astype(np.float32), "fast")
        began = time.perf_counter()
        retrieval.net_gain(prediction, "auto")
        gate.estimate_fast(prediction.probabilities)
        times.append(time.perf_counter() - began)
    return float(np.median(times) * 1000)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("data", "router", "work", "json"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--no-ask", action="store_true", help="Report on the answers that are there.")
    options = parser.parse_args()
    report = measure(options.data, options.router, work=options.work, ask=not options.no_ask)
    options.json.write_text(json.dumps(report, indent=2))
    print(json.dumps(report, indent=2))


def measure(data: Path, folder: Path, *, work: Path, ask: bool) -> dict[str, Any]:
    """All of it, with the router in `folder`."""
    router, encoder = routers.load(folder), routers.load_document_encoder(folder)
    report: dict[str, Any] = {"natural": natural(data, router, encoder)}
    report["end_to_end"] = asyncio.run(end_to_end(data, router, encoder, work=work, ask=ask))
    rows = rows_of(data / "retrieval" / "questions_train.parquet")
    sample = [row["question"] for row in rows if row["source"] == NATURAL][:100]
    half = np.array([[float(number % 2)] for number in range(100)])
    report["closed_ms"] = closed_gate_ms(_trials(sample, router, encoder, experts=("small",), without=half))
    return report


if __name__ == "__main__":
    main()
