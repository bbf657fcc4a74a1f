"""The default gate: how well the cosine of the best passage tells questions that documents answer from all others.

    python benchmarks/default_gate.py --data DIR --router FOLDER --json FILE [--answers FOLDER]

DIR holds retrieval/ in parquet. Two corpora are indexed: the documents of DIR, and this project's docs with the
questions of docs_questions.jsonl. Questions without a document there are the others, by source. FOLDER of --answers is
the one that retrieval_gate.py filled: the report then has the quality of a small model at each threshold, with the
standard error of the difference to no passages.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

import routers
from benchmarks.docs_retrieval import QUESTIONS, indexed_docs
from benchmarks.passage_answers import AnsweredQuestion, answered, questions_of
from benchmarks.plain_questions import plain_questions
from benchmarks.retrieval_gate import document_texts, rows_of
from coe.retrieval.ingest.indexing import Indexer, TokenizingEncoder, encoder_id
from coe.retrieval.store import DocumentStore, open_store

THRESHOLDS = tuple(round(0.3 + 0.05 * step, 2) for step in range(9))
SAMPLE = 150
"""Questions of each source."""


@dataclass(frozen=True, slots=True)
class Searched:
    """A question, whether a document of the corpus answers it, and the cosine of the best passage."""

    source: str
    answered: bool
    cosine: float


async def measured(data: Path, docs: Path, pages: Sequence[Path], encoder: TokenizingEncoder) -> dict[str, Any]:
    """Return the share of questions for which each threshold opens, by corpus."""
    rows = rows_of(data / "retrieval" / "questions_train.parquet")
    own = [("docs", True, json.loads(line)["question"]) for line in QUESTIONS.read_text().splitlines()]
    by_source: dict[str, list[tuple[str, bool, str]]] = defaultdict(list)
    for row in rows:
        by_source[row["source"]].append((row["source"], bool(row["gold_doc"]), row["question"]))
    by_source["plain"] = [("plain", False, text) for text, _ in plain_questions(SAMPLE, seed=1)]
    drawn = random.Random(0)
    sample = [one for found in by_source.values() for one in drawn.sample(found, min(SAMPLE, len(found)))]
    others = [(source, False, text) for source, _, text in sample]
    report = {}
    with TemporaryDirectory() as folder:
        store = open_store("lancedb:///data", base=Path(folder), encoder=encoder_id(encoder))
        await Indexer(store, encoder).add(document_texts(rows_of(data / "retrieval" / "docs.parquet")))
        report["data"] = _shares([await _searched(store, encoder, *one) for one in sample])
        await store.aclose()
        async with indexed_docs(docs, pages, encoder, Path(folder)) as (store, _):
            report["docs"] = _shares([await _searched(store, encoder, *one) for one in (*own, *others)])
    return report


async def _searched(
    store: DocumentStore, encoder: TokenizingEncoder, source: str, answered: bool, text: str
) -> Searched:
    found = await store.search(text, encoder.encode([text])[0], limit=4)
    return Searched(source, answered, max((passage.score for passage in found), default=-1.0))


def _shares(found: Sequence[Searched]) -> dict[str, Any]:
    """Return the share of answered and other questions at or above each threshold, and the worst sources of the
    others."""
    report: dict[str, Any] = {}
    for threshold in THRESHOLDS:
        opened: dict[tuple[str, bool], list[bool]] = defaultdict(list)
        for one in found:
            opened[one.source, one.answered].append(one.cosine >= threshold)
        shares = {key: float(np.mean(values)) for key, values in opened.items()}
        others = {source: share for (source, answered), share in shares.items() if not answered}
        report[str(threshold)] = {
            "answered": {source: round(share, 3) for (source, answered), share in shares.items() if answered},
            "others": round(float(np.mean([one.cosine >= threshold for one in found if not one.answered])), 4),
            "worst": {source: round(others[source], 3) for source in sorted(others, key=lambda s: -others[s])[:4]},
        }
    return report


async def answers_of(data: Path, folder: Path, encoder: TokenizingEncoder) -> dict[str, Any]:
    """Return the quality of the small model without passages, always with them, and at each threshold."""
    store = open_store("lancedb:///store", base=folder, encoder=encoder_id(encoder))
    questions = questions_of(rows_of(data / "retrieval" / "questions_train.parquet"))
    found = await answered(questions, store, encoder, folder=folder, ask=False)
    await store.aclose()
    report = {"all": _qualities(found)}
    kinds = sorted({one.question.kind for one in found})
    return report | {kind: _qualities([one for one in found if one.question.kind == kind]) for kind in kinds}


def _qualities(found: Sequence[AnsweredQuestion]) -> dict[str, Any]:
    without, with_ = (np.array([getattr(one, name) for one in found]) for name in ("without", "with_"))
    cosine = np.array([max(one.cosines, default=-1.0) for one in found])
    report: dict[str, Any] = {"questions": len(found), "never": round(float(without.mean()), 4)}
    report["always"] = round(float(with_.mean()), 4)
    for threshold in THRESHOLDS:
        is_open = cosine >= threshold
        change = np.where(is_open, with_ - without, 0.0)
        report[str(threshold)] = {
            "opened": round(float(is_open.mean()), 3),
            "change": round(float(change.mean()), 4),
            "error": round(float(change.std() / np.sqrt(len(change))), 4),
        }
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--router", type=Path, required=True)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--answers", type=Path)
    parser.add_argument("--answers-only", action="store_true")
    options = parser.parse_args()
    encoder = routers.load_document_encoder(options.router, threads=1)
    docs = Path(__file__).parent.parent / "docs"
    report: dict[str, Any] = {}
    if not options.answers_only:
        report = asyncio.run(measured(options.data, docs, sorted(docs.rglob("*.md")), encoder))
    if options.answers:
        report["answers"] = asyncio.run(answers_of(options.data, options.answers, encoder))
    options.json.write_text(json.dumps(report, indent=1))
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
