"""Recall of the document store on this project's own docs: questions in users' words whose pages are known.

    python benchmarks/docs_retrieval.py --router FOLDER [--docs DIR] [--json FILE]

FOLDER is a trained router, whose encoder embeds the pages. docs_questions.jsonl has the questions and, for each, the
pages that answer it. All pages are indexed as `coe index add docs` does, those of experiments and decisions too.
recall@k: a passage of such a page is among the first k passages.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

import routers
from coe.retrieval.ingest.conversion import Converter
from coe.retrieval.ingest.indexing import Indexer, IndexingCounts, SourceText, TokenizingEncoder, encoder_id
from coe.retrieval.passages import DocumentKey, Passage
from coe.retrieval.store import DocumentStore, open_store

QUESTIONS = Path(__file__).with_name("docs_questions.jsonl")
LIMIT = 10
LEVELS = (1, 3, 4, 5, 10)
"""Of recall; 4 is the default of `retrieval.max_passages`."""


async def measured(docs: Path, pages: Sequence[Path], encoder: TokenizingEncoder) -> dict[str, Any]:
    """Index the pages in a new folder and search all questions."""
    questions = [json.loads(line) for line in QUESTIONS.read_text().splitlines()]
    with TemporaryDirectory() as folder:
        async with indexed_docs(docs, pages, encoder, Path(folder)) as (store, counts):
            found = [await _search(store, encoder, one["question"]) for one in questions]
    ranks = [_rank(passages, one["pages"]) for passages, one in zip(found, questions, strict=True)]
    return {
        "pages": counts.added,
        "chunks": counts.chunks,
        "questions": len(questions),
        "recall": {f"@{k}": float(np.mean([rank <= k for rank in ranks])) for k in LEVELS},
        "missed_at_5": [
            {"question": one["question"], "rank": rank if rank <= LIMIT else None, "found": _pages(passages)[:5]}
            for one, rank, passages in zip(questions, ranks, found, strict=True)
            if rank > 5
        ],
    }


@asynccontextmanager
async def indexed_docs(
    docs: Path, pages: Sequence[Path], encoder: TokenizingEncoder, folder: Path
) -> AsyncIterator[tuple[DocumentStore, IndexingCounts]]:
    """Open a new store in `folder` that has these pages."""
    store = open_store("lancedb:///docs", base=folder, encoder=encoder_id(encoder))
    async with Converter() as converter:
        counts = await Indexer(store, encoder).add(_texts(docs, pages, converter))
    yield store, counts
    await store.aclose()


async def _texts(docs: Path, pages: Sequence[Path], converter: Converter) -> AsyncIterator[SourceText]:
    for path in pages:
        converted, name = await converter.convert(path, "markdown"), path.relative_to(docs).as_posix()
        yield SourceText(DocumentKey(name, "docs"), converted.text, name, converted.title)


async def _search(store: DocumentStore, encoder: TokenizingEncoder, text: str) -> Sequence[Passage]:
    return await store.search(text, encoder.encode([text])[0], limit=LIMIT)


def _pages(passages: Sequence[Passage]) -> list[str]:
    return [passage.source for passage in passages]


def _rank(passages: Sequence[Passage], pages: Sequence[str]) -> int:
    """Return the place of the first passage of one of the pages, from 1; LIMIT + 1 without one."""
    return next((place for place, page in enumerate(_pages(passages), 1) if page in pages), LIMIT + 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--router", type=Path, required=True)
    parser.add_argument("--docs", type=Path, default=Path(__file__).parent.parent / "docs")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    encoder = routers.load_document_encoder(options.router, threads=2)
    report = asyncio.run(measured(options.docs, sorted(options.docs.rglob("*.md")), encoder))
    if options.json:
        options.json.write_text(json.dumps(report, indent=1))
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
