"""The gate is fitted from answers with and without passages, kept in a file, and reported honestly."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from coe.artifacts.store import ArtifactStore
from coe.cli import app
from coe.errors import ArtifactError, DataError
from coe.measuring.gate_fit import (
    GAINS_FILE,
    GateExamples,
    add_passages,
    cross_fitted_gates,
    fit_gate,
    gate_estimates,
    read_gains,
    write_gains,
)
from coe.measuring.probes import Probe
from coe.planning.job import plan as gate_job
from coe.registry.sections import RetrievalSpec
from coe.retrieval.gate import Gate
from routers.calibration import auroc
from tests.cli.test_plan import config
from tests.fakes import WordRouter
from tests.retrieval.gates import FlatEncoder, ListRetriever, gate_of, passage

__all__ = ["config"]

EXPERTS = ("small", "large")


def trials_of(count: int = 240, *, seed: int = 0) -> GateExamples:
    """Law questions need documents, more so the further along the first axis they lie; the large expert knows half."""
    random = np.random.default_rng(seed)
    category = random.integers(0, 3, count)
    posterior = np.full((count, 3), 0.1)
    posterior[np.arange(count), category] = 0.8
    vectors = random.normal(size=(count, 8))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    need = 1 / (1 + np.exp(-6 * vectors[:, 0])) * (category == 1)
    small = random.random(count) < need
    large = small & (random.random(count) < 0.3)
    needs = np.stack([small, large], axis=1).astype(float)
    return GateExamples(
        categories=("code", "law", "general"),
        experts=EXPERTS,
        texts=tuple(f"question {number}" for number in range(count)),
        posterior=posterior,
        full=posterior,
        vectors=vectors,
        without=1 - needs,
        with_=np.ones((count, 2)),
        cosine=np.where(category == 1, 0.7, 0.2) + random.normal(scale=0.05, size=count),
        tokens=np.full(count, 400.0),
        seconds=np.full(count, 0.01),
    )


@pytest.mark.slow
def test_the_gate_finds_questions_that_need_documents_and_that_a_small_expert_needs_them_more() -> None:
    trials, found = trials_of(), np.zeros((240, 2))
    for rows, gate in cross_fitted_gates(trials):
        found[rows] = gate_estimates(gate, trials.part(rows)).helps
    helped = trials.delta > 0
    assert auroc(found[:, 0].astype(np.float32), helped[:, 0]) > 0.85
    law = trials.posterior.argmax(axis=1) == 1
    assert found[law, 0].mean() > found[law, 1].mean() + 0.1
    assert found[~law].mean() < 0.1
    assert abs(found.mean() - helped.mean()) < 0.05


def test_a_gate_is_the_same_after_saving_and_in_another_order_of_categories_and_experts(tmp_path: Path) -> None:
    trials = trials_of(80)
    gate = fit_gate(trials)
    gate.save(tmp_path / "gate.npz")
    read = Gate.load(tmp_path / "gate.npz")
    assert np.array_equal(gate_estimates(read, trials).gain, gate_estimates(gate, trials).gain)
    turned = read.align(("general", "code", "law"), ("new", "large", "small"))
    other = turned.estimate(trials.posterior[0][[2, 0, 1]], trials.vectors[0])
    assert other.helps[[2, 1]] == pytest.approx(gate_estimates(gate, trials).helps[0])
    assert (other.helps[0], other.gain[0]) == (0, 0)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 noise", b"\x93NUMPY"])
def test_a_damaged_file_names_itself_and_the_remedy(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "gate.npz").write_bytes(content)
    with pytest.raises(ArtifactError, match=r"gate.npz: not a gate.*coe plan"):
        Gate.load(tmp_path / "gate.npz")
    gate_of(0.0).save(tmp_path / "gate.npz")
    with np.load(tmp_path / "gate.npz") as file:
        arrays = dict(file)
    np.savez(tmp_path / "gate.npz", **arrays | {"format": np.array(1)})
    with pytest.raises(ArtifactError, match=r"not a gate.*format 1, not 7.*fit it again"):
        Gate.load(tmp_path / "gate.npz")


def probe(number: int) -> Probe:
    text = f"question {number}"
    turns = ({"role": "user", "content": text},)
    return Probe(f"p{number}", turns, text, "law", "contains", "yes", None, 0.0, f"d{number}")


@pytest.mark.anyio
async def test_probes_get_the_passages_of_a_request_and_scores_are_stored_in_pairs(tmp_path: Path) -> None:
    retriever = ListRetriever(passage("It is so."), passage("Not like it at all.", score=0.0))
    (given,) = await add_passages([probe(1)], RetrievalSpec(), retriever=retriever, encoder=FlatEncoder())
    assert "It is so." in given.probe.messages[0]["content"]
    assert "Not like" not in given.probe.messages[0]["content"]
    assert (given.cosine, given.probe.digest == probe(1).digest) == (0.6, False)
    (bare,) = await add_passages([probe(2)], RetrievalSpec(), retriever=ListRetriever(), encoder=FlatEncoder())
    assert (bare.probe, bare.tokens) == (probe(2), 0)
    write_gains(tmp_path, [(given, "small", 0.0, 1.0), (bare, "large", 1.0, 1.0)])
    examples = read_gains(tmp_path, EXPERTS)
    assert examples is not None
    found = examples(WordRouter(), FlatEncoder())
    assert (found.texts, found.experts) == (("question 1", "question 2"), EXPERTS)
    assert found.with_[0, 0] == 1.0
    assert np.isnan(found.without[0, 1])
    assert read_gains(tmp_path / "elsewhere", EXPERTS) is None
    (tmp_path / GAINS_FILE).write_bytes(b"noise")
    with pytest.raises(DataError, match=r"gains.parquet: cannot be read"):
        read_gains(tmp_path, EXPERTS)


@pytest.mark.slow
def test_a_plan_on_pairs_of_scores_fits_the_gate_and_puts_it_into_use(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (config.parent / GAINS_FILE).write_bytes(b"pairs")
    monkeypatch.setattr(gate_job, "load_examples", lambda *_: trials_of())
    words = ["plan", str(config.parent), "--config", str(config)]
    dry = CliRunner().invoke(app, [*words, "--dry-run"], catch_exceptions=False)
    store = ArtifactStore(config.parent / ".coe" / "artifacts", "gate")
    assert "tokens saved" in dry.stdout
    assert store.in_use() is None
    report = json.loads(CliRunner().invoke(app, [*words, "--json"], catch_exceptions=False).stdout)["gate"]
    current = store.current()
    assert current is not None
    assert current.manifest.version == report["version"]
    assert Gate.load(current.folder / "gate.npz").experts == EXPERTS
