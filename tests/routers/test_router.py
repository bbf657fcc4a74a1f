"""Routers from outside: the conformance suite, their folder, and the metrics of training."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import routers
from coe.core import Router
from coe.errors import ArtifactError, DataError
from coe.measuring.benchmark import SharedEncoder
from routers.calibration import auroc
from routers.cascade import EXEMPLARS, FORMAT
from routers.encoders import OnnxEncoder
from tests.routers.conftest import WORDS, examples, sentences, training_rows

Built = tuple[Path, dict[str, Any], list[Any]]
ODD_TEXTS = [
    "",
    " \n\t",
    "\x00\x01",
    "\ud800 lone",
    "日本の首都はどこですか",
    "مرحبا",
    "🙂" * 40,
    "x" * 10_000_000,
    "a\u0301" * 300,
]


def with_threshold(built: Built, tmp_path: Path, threshold: float | None) -> Router:
    """The built router with another escalation threshold, so that either stage can be forced."""
    if threshold is None:
        return routers.load(built[0])
    for path in built[0].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    config = json.loads((tmp_path / "router.json").read_text())
    config["ensemble"]["threshold"] = threshold
    (tmp_path / "router.json").write_text(json.dumps(config))
    return routers.load(tmp_path)


@pytest.fixture(params=[None, 0.0, 1.1, "adapted"], ids=["as trained", "always fast", "always encoder", "adapted"])
def router(request: pytest.FixtureRequest, built: Built, tmp_path: Path) -> Router:
    if request.param == "adapted":
        texts = sentences("chess", count=8, seed=9)
        return routers.load(built[0], declared=dict.fromkeys(WORDS, ()) | {"general": (), "chess": texts})
    return with_threshold(built, tmp_path, request.param)


# ------------------------------------------------------------------------------------ conformance


def test_every_text_gets_a_posterior_that_sums_to_one(router: Router) -> None:
    for prediction in router.predict([*ODD_TEXTS, "bake bread"]):
        assert prediction.probabilities.dtype == np.float32
        assert prediction.probabilities.shape == (len(router.categories),)
        assert prediction.probabilities.sum() == pytest.approx(1, abs=1e-4)
        assert prediction.probabilities.min() >= 0
        assert 0 <= prediction.in_distribution <= 1


def test_predict_equals_a_confident_fast_prediction(router: Router) -> None:
    texts = [text for name in WORDS for text in sentences(name, count=10, seed=1)]
    for text, prediction in zip(texts, router.predict(texts), strict=True):
        fast = router.predict_fast(text)
        assert (fast.stage == "fast") == (prediction.stage == "fast")
        if fast.stage == "fast":
            np.testing.assert_array_equal(fast.probabilities, prediction.probabilities)
            assert fast.confidence == prediction.confidence


def test_predictions_keep_the_order_of_the_texts_and_do_not_depend_on_each_other(router: Router) -> None:
    texts = [text for name in WORDS for text in sentences(name, count=5, seed=2)]
    together = router.predict(texts)
    for text, prediction in zip(texts, together, strict=True):
        np.testing.assert_allclose(router.predict([text])[0].probabilities, prediction.probabilities, atol=0.05)


def test_with_embeddings_every_text_is_scored_by_all_heads(router: Router, built: Built, monkeypatch: Any) -> None:
    texts = [text for name in WORDS for text in sentences(name, count=10, seed=5)]
    embeddings = routers.load_document_encoder(built[0]).features(texts)
    before = router.predict(texts)
    monkeypatch.setattr(OnnxEncoder, "embed_ids", None)  # from here on the encoder must not run
    found = router.predict(texts, embeddings=embeddings)
    assert {prediction.stage for prediction in found} == {"encoder"}
    for escalated, prediction in [pair for pair in zip(before, found, strict=True) if pair[0].stage == "encoder"]:
        np.testing.assert_allclose(prediction.probabilities, escalated.probabilities, atol=0.05)
    assert router.predict([], embeddings=embeddings[:0]) == []


def test_an_encoder_pass_on_request_scores_all_heads_and_returns_the_features(router: Router, built: Built) -> None:
    texts = ["bake the bread", "the penalty and the referee"]
    features = routers.load_encoder(built[0]).features(texts)
    encoded = router.predict(texts, encode=True)
    for one, given, row in zip(encoded, router.predict(texts, embeddings=features), features, strict=True):
        assert one.features is not None
        np.testing.assert_allclose(one.features, row, atol=1e-5)
        np.testing.assert_allclose(one.probabilities, given.probabilities, atol=1e-5)
    assert all(one.features is None for one in router.predict(texts))


def test_unseen_prompts_reach_their_category(router: Router) -> None:
    texts = [(name, text) for name in WORDS for text in sentences(name, count=20, seed=3)]
    predictions = router.predict([text for _, text in texts])
    right = [router.categories[p.best] == name for (name, _), p in zip(texts, predictions, strict=True)]
    assert np.mean(right) > 0.85


def test_threads_may_share_a_router(router: Router) -> None:
    texts = [text for name in WORDS for text in sentences(name, count=5, seed=4)]
    expected = [p.best for p in router.predict(texts)]
    found: list[list[int]] = []
    threads = [threading.Thread(target=lambda: found.append([p.best for p in router.predict(texts)])) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 4


# ------------------------------------------------------------------------------------ out of scope


def test_out_of_scope_texts_get_a_low_confidence(router: Router) -> None:
    in_scope = [text for name in WORDS for text in sentences(name, count=10, seed=5)]
    strange = [" ".join(random.Random(i).choices("qxzjkvw", k=12)) for i in range(30)]
    confidence = np.array([p.confidence for p in router.predict([*in_scope, *strange])])
    assert auroc(confidence, np.repeat([True, False], 30)) > 0.9


# ------------------------------------------------------------------------------------ the folder


FILES = ["router.json", "tokenizer.json", "encoder.onnx", "lexical.npz", "static.npz", "semantic.npz", EXEMPLARS]


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named_with_its_remedy(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(ArtifactError, match=rf"{name}: .*train the router again"):
        routers.load(folder)


@pytest.mark.parametrize("name", FILES)
def test_a_truncated_file_is_named_with_its_remedy(folder: Path, name: str) -> None:
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(ArtifactError, match=rf"{name}: .*train the router again"):
        routers.load(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"categories": ["cooking"]},
        {"ensemble": None},
        {"in_distribution": {"fast": {"weights": [1.0, 1.0], "bias": 0.0}}},
        {"tokens": None},
        {"format": FORMAT - 1},
    ],
)
def test_a_config_that_does_not_fit_its_tables_is_refused(folder: Path, change: dict[str, Any]) -> None:
    config = json.loads((folder / "router.json").read_text())
    (folder / "router.json").write_text(json.dumps(config | change))
    with pytest.raises(ArtifactError, match="train the router again"):
        routers.load(folder)


def test_serving_imports_neither_torch_nor_sklearn(built: Built) -> None:
    code = (
        "import sys, pathlib, routers; r = routers.load(pathlib.Path(sys.argv[1])); r.predict(['bake bread', 'zzz']); "
        "print([m for m in ('torch', 'sklearn', 'scipy', 'transformers', 'sentence_transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(built[0])], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# ------------------------------------------------------------------------------------ training


def test_metrics_are_json_and_count_what_was_dropped(built: Built) -> None:
    _, metrics, _ = built
    json.dumps(metrics)
    assert metrics["dropped"] == {"blank": 1, "duplicate": 1, "contradictory": 1}
    assert metrics["examples"] == len(examples()) + 2
    assert set(metrics["accuracy_by_category"]) == set(WORDS)
    assert metrics["accuracy"] > 0.9
    assert 0 <= metrics["escalated"] <= 1
    assert 0 < metrics["confidence_threshold"] < 1
    assert metrics["rejected"] <= 0.05 < metrics["rejected_out_of_scope"]
    assert metrics["bytes"].keys() - {"multilingual.npz", "held_out.json"} == set(FILES)  # serving needs neither


def test_progress_reports_every_stage_from_start_to_end(built: Built) -> None:
    _, metrics, calls = built
    for stage in metrics["seconds"]:
        shares = [share for name, share in calls if name == stage]
        assert shares[0] == 0.0
        assert shares[-1] == 1.0
        assert all(0 <= share <= 1 for share in shares)


def test_routers_that_share_an_encoder_equal_one_that_exports_it(built: Built, tmp_path: Path) -> None:
    shared, texts = SharedEncoder(built[0]), [one.prompt for one in examples()]
    expected = routers.load(built[0]).predict(texts, encode=True)
    embedded = set[int]()
    for name in ("first", "second"):
        router = shared.train([(one.prompt, one.category) for one in training_rows()], tmp_path / name)
        found = router.predict(texts, encode=True)
        np.testing.assert_array_equal([one.probabilities for one in found], [one.probabilities for one in expected])
        embedded.add(len(shared.memory))
    assert len(embedded) == 1  # every text and token was embedded once


def test_a_missing_encoder_is_reported_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no_such_encoder"):
        routers.build(examples(), encoder="no_such_encoder", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
