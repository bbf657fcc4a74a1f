"""`coe score --retrieval both` and what follows it, whole: a real store and router."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
from pyarrow import parquet

from coe.artifacts.store import ArtifactStore
from coe.retrieval.gate import GATE_FILE, Gate
from tests.cli.logged_service import TRAINING_DIGEST
from tests.routers.conftest import WORDS, built, tiny_encoder
from tests.score.answering import AnsweringServer

__all__ = ["built", "tiny_encoder"]

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

NAMES = ("Alda", "Bero", "Cato", "Dina", "Edo", "Fara")
COLOURS = ("green", "white", "black", "yellow")
SMALL_GATE = """
from coe.measuring import gate_fit
gate_fit.MIN_QUESTIONS, gate_fit.MIN_TRAINING_QUESTIONS = 20, 16
from coe.cli import app
app()
"""
"""The command line with fewer questions for a gate."""
FACTS = [
    (f"{name} {kind}", COLOURS[(at + len(kind)) % 4])
    for at, name in enumerate(NAMES)
    for kind in ("hat", "boat", "car", "coat")
]


def made(folder: Path, router: Path, port: int) -> None:
    """Declared, with a router in use, documents to index and probes that only these answer."""
    categories = [{"name": name, "description": name} for name in (*WORDS, "general")]
    shared = {"runtime": "external", "base_url": f"http://127.0.0.1:{port}/v1"}
    experts = [{"name": name, "model": name} | shared for name in ("small", "reader")]
    declared: dict[str, Any] = {"version": 1, "categories": categories, "experts": experts}
    declared |= {"assignment": {"general": "small"}}
    declared["retrieval"] = {
        "store": "lancedb:///documents",
        "max_passages": 1,
        "min_similarity": -1,
        "max_tokens": 128,
    }
    (folder / "experts.yaml").write_text(json.dumps(declared))
    store = ArtifactStore(folder / ".coe" / "artifacts", "router")
    with store.draft() as draft:
        shutil.copytree(router, draft, dirs_exist_ok=True)
        artifact = store.publish(draft, categories=(*WORDS, "general"), data=TRAINING_DIGEST, metrics={})
    store.promote(artifact.manifest.version, by="train")
    (folder / "facts").mkdir()
    for what, colour in FACTS:
        (folder / "facts" / f"{what.replace(' ', '-')}.txt").write_text(f"The {what} has the colour {colour}.")
    lines = [
        {"id": f"p{at}", "prompt": f"Which colour has the {what}?", "category": "general", "checker": "contains"}
        | {"reference": colour}
        for at, (what, colour) in enumerate(FACTS)
    ]
    (folder / "probes.jsonl").write_text("\n".join(map(json.dumps, lines)))


async def run(folder: Path, *words: str) -> Any:
    """Return the report of the command."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", SMALL_GATE, *words, "--config", str(folder / "experts.yaml"), "--json"),
        stdout=asyncio.subprocess.PIPE,
        cwd=folder,
    )
    async with asyncio.timeout(850):
        output, _ = await process.communicate()
    assert process.returncode == 0, output
    return json.loads(output)


def reads_half(text: str) -> str:
    return text if "sources" in text and ("hat" in text or "boat" in text) else "I cannot know."


async def test_experts_are_measured_with_and_without_passages_and_a_gate_fitted_to_it(
    tmp_path: Path, built: tuple[Path, dict[str, Any], list[Any]]
) -> None:
    folder, out = tmp_path / "service", tmp_path / "quality"
    folder.mkdir()
    reads = {"reader": lambda text: text if "sources" in text else "I cannot know.", "small": reads_half}
    async with AnsweringServer(reads).running() as server:
        made(folder, built[0], server.port)
        indexed = await run(folder, "index", "add", "facts")
        scored = await run(folder, "score", "probes.jsonl", "--out", str(out), "--retrieval", "both")
    assert indexed["added"] == len(FACTS)
    assert scored["missing"] == 0
    pairs = parquet.read_table(out / "gains.parquet").to_pylist()
    assert len(pairs) == 2 * len(FACTS)
    assert all(0 < pair["tokens"] <= 128 and -1 <= pair["cosine"] <= 1 for pair in pairs)
    means = {
        (name, passages): mean(pair[passages] for pair in pairs if pair["model"] == name)
        for name in ("small", "reader")
        for passages in ("without", "with")
    }
    assert means["small", "with"] > means["small", "without"]
    assert means["reader", "without"] == 0.0
    assert means["reader", "with"] > 0.8  # the encoder here is untrained
    planned = await run(folder, "plan", str(out))
    artifact = ArtifactStore(folder / ".coe" / "artifacts", "gate").current()
    assert artifact is not None
    assert artifact.manifest.version == planned["gate"]["version"]
    assert set(Gate.load(artifact.folder / GATE_FILE).experts) == {"small", "reader"}
    output = planned["gate"]["experts"]
    assert output["small"]["always"] == pytest.approx(means["small", "with"])
    assert output["reader"]["gated"] == pytest.approx(means["reader", "with"], abs=0.1)
