"""The retrieval gate on public questions: AUROC on measured labels, a real small model end to end, time when shut.

    python benchmarks/retrieval_gate.py --data DIR --router FOLDER --work FOLDER --json FILE

DIR holds retrieval/ and quality/ in parquet, FOLDER a trained router. Answers of the model are kept in --work: a run
that was stopped goes on, and --no-ask reports on what is there.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

import routers
from benchmarks.answered import Asked, asked, questions_of
from coe.learning.gate import Trials, chances, fit_gate
from coe.learning.gate_report import calibration
from coe.registry.retrieval import Retrieval, RetrievalPrice
from coe.retrieval import open_store
from coe.retrieval.consulting import NEARLY, Consultant
from coe.retrieval.indexing import Indexer, Text, encoder_id
from coe.retrieval.passages import Key
from routers.calibration import auroc, expected_calibration_error

NATURAL = "llmrouter_natural_qa"
SMALL = ("gemma-2-9b-it", "llama-3.1-8b-instruct", "mistral-7b-instruct-v0.3", "qwen2.5-7b-instruct")
SEEDS = 5


def rows_of(path: Path) -> list[dict[str, Any]]:
    return pq.read_table(path).to_pylist()


def trials_of(
    texts: list[str], without: Any, with_: Any, experts: tuple[str, ...], router: Any, encoder: Any
) -> Trials:
    posterior = np.stack([found.probabilities for found in router.predict(texts)]).astype(np.float64)
    vectors = encoder.encode(texts).astype(np.float64)
    nothing = np.full(len(texts), np.nan)
    return Trials(
        router.categories, experts, tuple(texts), posterior, vectors, without, with_, nothing, nothing, nothing
    )


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
    trials = trials_of([row["question"] for row in rows], alone, np.ones_like(alone), experts, router, encoder)
    label = np.array([row["needs_retrieval"] for row in rows])
    small = [experts.index(name) for name in SMALL]
    looks, glances, errors = [], [], []
    for seed in range(SEEDS):
        found, glanced = np.zeros((2, len(rows)))
        told = []
        folds = _stratified(label, seed)
        for fold in folds:
            gate = fit_gate(trials.part(np.setdiff1d(np.arange(len(rows)), fold)), seed=seed)
            chance = chances(gate, trials.part(fold))[:, small]
            found[fold] = chance.mean(axis=1)
            glanced[fold] = [gate.glanced(row)[small].mean() for row in trials.posterior[fold]]
            told.append((chance.ravel(), alone[np.ix_(fold, small)].ravel() < 0.5))
        looks.append(np.mean([auroc(found[f].astype(np.float32), label[f] == 1) for f in folds]))
        glances.append(np.mean([auroc(glanced[f].astype(np.float32), label[f] == 1) for f in folds]))
        chance, failed = (np.concatenate(part) for part in zip(*told, strict=True))
        errors.append(expected_calibration_error(chance.astype(np.float32), failed))
    return {
        "questions": int((label >= 0).sum()),
        "auroc": float(np.mean(looks)),
        "auroc_std_over_seeds": float(np.std(looks)),
        "auroc_glance": float(np.mean(glances)),
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
        texts = (Text(Key(doc["doc_id"], doc["source"]), doc["text"], doc["doc_id"]) for doc in docs)
        await Indexer(store, encoder).add(texts)
    questions = questions_of(rows_of(data / "retrieval" / "questions_train.parquet"))
    found = await asked(questions, store, encoder, folder=work, ask=ask)
    await store.aclose()
    fit, judged = ([one for one in found if one.question.train is part] for part in (True, False))
    gate = fit_gate(_trials(fit, router, encoder))
    trials = _trials(judged, router, encoder)
    price = RetrievalPrice()
    dear = price.thousand_tokens * gate.use.tokens / 1000
    both = dear + price.second * gate.use.seconds
    glance = np.stack([gate.glanced(row) for row in trials.posterior])
    before, after = chances(gate, trials), chances(gate, trials, evidence=True)
    looked = (gate.gain(glance) >= both * NEARLY)[:, 0]
    opened = looked & (gate.gain(before) > both)[:, 0] & (gate.gain(after) > dear)[:, 0]
    report = {"all": _policies(judged, opened)}
    for kind in sorted({one.question.kind for one in judged}):
        of = np.array([one.question.kind == kind for one in judged])
        report[kind] = _policies([one for one, yes in zip(judged, of, strict=True) if yes], opened[of])
    return report | {
        "fitted_to": len(fit),
        "looked": float(looked.mean()),
        "calibration": calibration(after[:, 0], (trials.delta > 0)[:, 0]),
    }


def _trials(found: list[Asked], router: Any, encoder: Any) -> Trials:
    texts = [one.question.text for one in found]
    without, with_ = (np.array([[getattr(one, name)] for one in found]) for name in ("without", "with_"))
    trials = trials_of(texts, without, with_, ("small",), router, encoder)
    cosine = np.array([max(one.cosines, default=np.nan) for one in found])
    tokens, seconds = (np.array([float(getattr(one, name)) for one in found]) for name in ("tokens", "seconds"))
    return Trials(
        trials.categories,
        trials.experts,
        trials.texts,
        trials.posterior,
        trials.vectors,
        without,
        with_,
        cosine,
        tokens,
        seconds,
    )


def _policies(found: list[Asked], opened: Any) -> dict[str, float]:
    without, with_, tokens = (
        np.array([getattr(one, name) for one in found]) for name in ("without", "with_", "tokens")
    )
    return {
        "questions": len(found),
        "never": float(without.mean()),
        "always": float(with_.mean()),
        "gated": float(np.where(opened, with_, without).mean()),
        "opened": float(opened.mean()),
        "token_share": float(tokens[opened].sum() / tokens.sum()),
    }


def time_when_shut(trials: Trials) -> float:
    """Median milliseconds of what a request pays for a gate that stays shut: its lift and its glance."""
    gate = fit_gate(trials)
    consultant = Consultant(Retrieval(), retriever=None, encoder=None, threads=None, gate=gate)  # type: ignore[arg-type]
    from coe.core import Prediction

    times = []
    for row in np.tile(trials.posterior, (20, 1))[:5000]:
        prediction = Prediction(row.astype(np.float32), "peek")
        began = time.perf_counter()
        consultant.lift(prediction, "auto")
        gate.gain(gate.glanced(prediction.probabilities))
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
    report["shut_ms"] = time_when_shut(trials_of(sample, half, np.ones((100, 1)), ("small",), router, encoder))
    return report


if __name__ == "__main__":
    main()
