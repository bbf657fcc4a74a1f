"""The document store: recall, latency and size; optionally the retrieval gate.

    benchmarks/retrieval.py --data DIR --json FILE [--router FOLDER] [--chunks 100000]
        [--answers FOLDER]

DIR holds docs.parquet (source, doc_id, text) and questions_train.parquet (source, question, gold_doc). FOLDER is a
trained router's artifact; left out, the one in use in .coe. With --answers the gate is
measured too: a small model answers some 500 questions with and without passages, kept in that folder (DIR lies beside
quality/ then).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import routers
from benchmarks import retrieval_gate, retrieval_store
from coe.artifacts.store import ArtifactStore


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--router", type=Path)
    parser.add_argument("--answers", type=Path)
    parser.add_argument("--chunks", type=int, default=100_000)
    options = parser.parse_args()
    encoder = routers.load_document_encoder(options.router or _router(), threads=2)
    report: dict[str, Any] = {
        "store": retrieval_store.measure(options.data, encoder, chunks=options.chunks),
    }
    if options.answers:
        router = options.router or _router()
        report["gate"] = retrieval_gate.measure(options.data.parent, router, work=options.answers, ask=True)
    options.json.write_text(json.dumps(report, indent=1))
    print(json.dumps(report, indent=1))


def _router() -> Path:
    artifact = ArtifactStore(Path(".coe/artifacts"), "router").current()
    if artifact is None:
        raise SystemExit("no router is in use here: run `coe train`, or name one with --router")
    return artifact.folder


if __name__ == "__main__":
    main()
