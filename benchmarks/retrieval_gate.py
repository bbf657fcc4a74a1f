"""The retrieval gate on public questions: AUROC on measured labels, a small model end to end, and latency when closed.

    python -m benchmarks.retrieval_gate --data DIR --router FOLDER --work FOLDER --json FILE [--no-ask]

DIR holds retrieval/ and quality/ in parquet, FOLDER a trained router. Answers of the model are stored in --work:
an interrupted run continues, and --no-ask reports on the answers stored so far.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import sys
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import aiohttp
import numpy as np
import pyarrow.parquet as pq

import routers
from coe.core import Prediction
from coe.fleet.engines import local_servers
from coe.fleet.server import Fleet
from coe.measuring.checkers import contains
from coe.measuring.gate_fit import GateExamples, fit_gate, gate_decisions, gate_estimates
from coe.registry import ExpertSpec
from coe.registry.sections import RetrievalPrice, RetrievalSpec
from coe.retrieval.indexing import Indexer, SourceText, encoder_id
from coe.retrieval.insertion import DocumentKey, Retriever, format_passages
from coe.retrieval.retrieval import Retrieval
from coe.retrieval.store import open_store
from routers.calibration import auroc, expected_calibration_error

NATURAL = "llmrouter_natural_qa"
SMALL = ("gemma-2-9b-it", "llama-3.1-8b-instruct", "mistral-7b-instruct-v0.3", "qwen2.5-7b-instruct")
SEEDS = 5
MODEL = "SmolLM2-135M-Instruct"
TOKENS, BUDGET, PASSAGES = 12, 320, 2
"""Tokens of an answer, tokens of the passages, number of passages."""
SOURCES = (("xquad_en", "Answer in a few words."), ("pubmedqa", "Answer yes or no."))
"""Sources of questions that documents answer, and what is added to each question."""
WORDS = ("river", "lamp", "silver", "garden", "window", "paper", "orange", "bridge", "cloud", "market", "needle")


# ---------------------------------------------------------------------------------------------- measured labels


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
            gate = fit_gate(trials.part(np.setdiff1d(np.arange(len(rows)), fold)))
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


# ---------------------------------------------------------------------------------------------- a small model's answers


@dataclass(frozen=True, slots=True)
class Question:
    """A correct answer contains one of `answers`; `kind` is plain or the source of the question."""

    kind: str
    text: str
    answers: tuple[str, ...]
    train: bool


@dataclass(frozen=True, slots=True)
class AnsweredQuestion:
    """One question answered without and with passages: scores 0 or 1, tokens and cosines of the passages."""

    question: Question
    without: float
    with_: float
    tokens: float
    cosines: tuple[float, ...]
    seconds: float


def questions_of(rows: Sequence[dict[str, Any]]) -> list[Question]:
    """400 questions for evaluation, half of which need documents, and 120 for fitting; these first, each in a random
    order, so that a prefix is a sample."""
    random, questions = Random(0), []
    for source, hint in SOURCES:
        usable = [row for row in rows if row["source"] == source and json.loads(row["answers"])]
        questions += [
            Question(source, f"{row['question']} {hint}", tuple(json.loads(row["answers"])), index >= 100)
            for index, row in enumerate(random.sample(usable, 130))
        ]
    plain: dict[str, str] = {}
    while len(plain) < 260:
        plain.update(plain_questions(random))
    for index, (text, answer) in enumerate(list(plain.items())[:260]):
        questions.append(Question("plain", text, (answer,), index >= 200))
    return sorted(questions, key=lambda one: (not one.train, hashlib.sha256(one.text.encode()).hexdigest()))


def plain_questions(random: Random) -> dict[str, str]:
    """One simple question of each kind for which no document is needed, and the words that its answer contains."""
    a, b, (word, other) = random.randint(1, 12), random.randint(1, 9), random.sample(WORDS, 2)
    letter = random.choice("ABCDEFGHIJKLMNOPQRSTUVWXY")
    return {
        f"How much is {a} plus {b}? Answer with the number.": str(a + b),
        f"Repeat these two words and say nothing else: {word} {other}": f"{word} {other}",
        f"Which letter comes after {letter} in the alphabet? Answer with the letter.": chr(ord(letter) + 1),
        f"Write the word {word} in capital letters, not the word {other}.": word.upper(),
    }


async def answered(
    questions: Sequence[Question], retriever: Retriever, encoder: Any, *, folder: Path, ask: bool
) -> list[AnsweredQuestion]:
    """Answer the questions that FOLDER/answers.jsonl lacks, or with `ask` False return those it has."""
    file = folder / "answers.jsonl"
    file.touch()
    stored = {row["text"]: row for row in map(json.loads, file.read_text().splitlines())}
    missing = [one for one in questions if one.text not in stored]
    if ask and missing:
        expert = ExpertSpec(name="small", model=MODEL, runtime="transformers")
        specs, endpoints = local_servers(
            [expert], cache=folder / "models", logs=folder / "logs", python=Path(sys.executable), report=print
        )
        async with Fleet(specs, report=print), aiohttp.ClientSession() as session:
            for done, question in enumerate(missing):
                stored[question.text] = row = await _ask(question, retriever, encoder, session, endpoints["small"])
                with file.open("a") as lines:
                    lines.write(json.dumps(row) + "\n")
                if done % 20 == 0:
                    print(f"{done}/{len(missing)}", flush=True)
    return [_scored(one, stored[one.text]) for one in questions if one.text in stored]


async def _ask(
    question: Question, retriever: Retriever, encoder: Any, session: aiohttp.ClientSession, endpoint: Any
) -> dict[str, Any]:
    began = time.perf_counter()
    passages = await retriever.search(question.text, encoder.encode([question.text])[0], limit=PASSAGES)
    seconds = time.perf_counter() - began
    block, answers = format_passages(passages, budget=BUDGET), []
    for context in ("", block.text if block else ""):
        messages = [{"role": "user", "content": context + question.text}]
        body = {"model": endpoint.model, "messages": messages, "max_tokens": TOKENS, "temperature": 0}
        async with session.post(f"{endpoint.base_url}/chat/completions", json=body) as response:
            response.raise_for_status()
            answers.append(str((await response.json())["choices"][0]["message"]["content"] or ""))
    cosines, tokens = [round(passage.score, 4) for passage in passages], block.tokens if block else 0
    return {"text": question.text, "answers": answers, "cosines": cosines, "tokens": tokens, "seconds": seconds}


def _scored(question: Question, row: dict[str, Any]) -> AnsweredQuestion:
    without, with_ = (max(contains(found, answer) for answer in question.answers) for found in row["answers"])
    return AnsweredQuestion(question, without, with_, float(row["tokens"]), tuple(row["cosines"]), row["seconds"])


# ---------------------------------------------------------------------------------------------- end to end


async def end_to_end(data: Path, router: Any, encoder: Any, *, work: Path, ask: bool) -> dict[str, Any]:
    """Never, always and gated on the questions that the gate was not fitted to."""
    store = open_store("lancedb:///store", base=work, encoder=encoder_id(encoder))
    docs = rows_of(data / "retrieval" / "docs.parquet")
    if ask:
        await Indexer(store, encoder).add(document_texts(docs))
    questions = questions_of(rows_of(data / "retrieval" / "questions_train.parquet"))
    both = await answered(questions, store, encoder, folder=work, ask=ask)
    await store.aclose()
    fit, judged = ([one for one in both if one.question.train is part] for part in (True, False))
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
    tokens, seconds = (np.array([getattr(one, name) for one in found]) for name in ("tokens", "seconds"))
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
