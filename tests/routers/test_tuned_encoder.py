"""Encoders that are tuned on the prompts: what changes, what stays, and which one a router keeps."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import routers
from coe.errors import ArtifactError, DataError
from routers.cascade import NETWORK, TOKENIZER, UNTUNED_NETWORK
from routers.encoders import OnnxEncoder
from routers.tokens import load_tokenizer
from routers.training import build, contrastive, tuned_encoder
from routers.training.contrastive import tune_network
from routers.training.export import export_encoder
from tests.routers.conftest import WORDS, examples, sentences

TEXTS = [text for name in WORDS for text in sentences(name, count=10, seed=3)]
LABELS = np.repeat(np.arange(len(WORDS)), 10)


def tuned(encoder: Path, out: Path, *, seed: int = 0) -> Path:
    tune_network(str(encoder), TEXTS, LABELS, out=out, seed=seed, threads=1, report=lambda share: None)
    return out


def vectors(folder: Path) -> np.ndarray:
    from sentence_transformers import SentenceTransformer

    return np.asarray(SentenceTransformer(str(folder), device="cpu").encode(TEXTS, normalize_embeddings=True))


def separation(found: np.ndarray) -> float:
    """Mean cosine within categories minus that between them."""
    cosines, same = found @ found.T, LABELS[:, None] == LABELS[None]
    return float(cosines[same].mean() - cosines[~same].mean())


@pytest.fixture(scope="module", autouse=True)
def few_steps() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(contrastive, "STEPS", 20)
        patch.setattr(contrastive, "LEARNING_RATE", 1e-2)  # the weights of the tiny encoder are random
        patch.setattr(build, "unusable", lambda: "not here")  # as without the extra `multilingual`, which takes longest
        yield


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for the export of the untuned encoder, which takes seconds."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def plain(tiny_encoder: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A router of the same prompts with the encoder as it is."""
    out = tmp_path_factory.mktemp("plain")
    return out, routers.build(examples(), encoder=str(tiny_encoder), out=out, threads=1, cache=cache)


@pytest.fixture(scope="module")
def built_tuned(
    tiny_encoder: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    """A router with a tuned encoder, whatever its gain."""
    out = tmp_path_factory.mktemp("tuned")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tuned_encoder, "MIN_GAIN", -1.0)
        metrics = routers.build(
            examples(), encoder=str(tiny_encoder), tune_encoder=True, out=out, threads=1, cache=cache
        )
    return out, metrics


def test_tuning_separates_categories_and_is_repeatable(tiny_encoder: Path, tmp_path: Path) -> None:
    first, again, other = (
        vectors(tuned(tiny_encoder, tmp_path / name, seed=seed)) for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert separation(first) > separation(vectors(tiny_encoder)) + 0.1
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-4


def test_word_vectors_and_lower_layers_stay(tiny_encoder: Path, tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    before, after = (
        load_file(next(folder.rglob("model.safetensors"))) for folder in (tiny_encoder, tuned(tiny_encoder, tmp_path))
    )
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert {name.split(".")[2] for name in changed if ".layer." in name} == {"1", "2"}
    assert not [name for name in changed if "embeddings" in name]


def test_an_encoder_that_cannot_be_tuned_is_refused(
    tiny_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding

    words = StaticEmbedding(load_tokenizer(tiny_encoder / "tokenizer.json"), embedding_dim=8)
    SentenceTransformer(modules=[words], device="cpu").save(str(tmp_path / "words"))
    with pytest.raises(DataError, match="no transformer layers to tune"):
        tuned(tmp_path / "words", tmp_path / "out")
    monkeypatch.setattr(contrastive, "SHARPNESS", float("inf"))
    with pytest.raises(DataError, match="its tuning diverged"):
        tuned(tiny_encoder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_export_gives_the_vectors_of_torch(tiny_encoder: Path, tmp_path: Path) -> None:
    folder = tuned(tiny_encoder, tmp_path / "tuned")
    export_encoder(str(folder), network=tmp_path / NETWORK, tokenizer=tmp_path / TOKENIZER)
    exported = OnnxEncoder(tmp_path / NETWORK, tmp_path / TOKENIZER).encode(TEXTS)
    np.testing.assert_allclose(exported, vectors(folder), atol=1e-4)


def test_a_tuned_router_is_whole_and_routes(built_tuned: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder, metrics = built_tuned
    tuning = metrics["tuning"]
    assert tuning["in_use"]
    assert tuning["held_out"] == 24
    assert tuning["difference"] == pytest.approx(tuning["tuned"] - tuning["untuned"])
    assert sum(map(sum, metrics["confusion"]["counts"])) == 24  # no prompt that tuning has seen
    moved = Path(shutil.copytree(folder, tmp_path / "moved"))
    texts = [text for name in WORDS for text in sentences(name, count=10, seed=9)]
    truth = [name for name in WORDS for _ in range(10)]
    router = routers.load(moved)
    found = [router.categories[prediction.best] for prediction in router.predict(texts)]
    assert np.mean([a == b for a, b in zip(found, truth, strict=True)]) > 0.8


def test_a_tuned_router_is_served_without_the_libraries_of_training(built_tuned: tuple[Path, dict[str, Any]]) -> None:
    code = (
        "import sys; from pathlib import Path; import routers; folder = Path(sys.argv[1]);"
        "router = routers.load(folder);"
        "found = routers.load_document_encoder(folder).features(['bake bread']);"
        "router.predict(['bake bread'], embeddings=found);"
        "print({'torch', 'sklearn', 'sentence_transformers'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(built_tuned[0])], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_documents_keep_the_untuned_encoder(
    built_tuned: tuple[Path, dict[str, Any]], plain: tuple[Path, dict[str, Any]]
) -> None:
    folder = built_tuned[0]
    before, after = routers.load_document_encoder(plain[0]), routers.load_document_encoder(folder)
    assert after.digest == before.digest
    np.testing.assert_array_equal(after.encode(TEXTS), before.encode(TEXTS))
    np.testing.assert_array_equal(
        routers.load_encoder(folder).encode(TEXTS), routers.load_encoder(plain[0]).encode(TEXTS)
    )
    own = OnnxEncoder(folder / NETWORK, folder / TOKENIZER)
    assert np.abs(own.encode(TEXTS) - after.encode(TEXTS)).max() > 0.01


def test_embeddings_of_documents_give_the_routers_own_posterior(built_tuned: tuple[Path, dict[str, Any]]) -> None:
    folder = built_tuned[0]
    router, own = routers.load(folder), OnnxEncoder(folder / NETWORK, folder / TOKENIZER)
    by_documents = router.predict(TEXTS, embeddings=routers.load_document_encoder(folder).features(TEXTS))
    for found, expected in zip(by_documents, router.predict(TEXTS, embeddings=own.features(TEXTS)), strict=True):
        np.testing.assert_array_equal(found.probabilities, expected.probabilities)


def test_an_encoder_that_does_not_gain_is_not_kept(
    tiny_encoder: Path, cache: Path, tmp_path: Path, plain: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuned_encoder, "MIN_GAIN", 1.0)
    metrics = routers.build(
        examples(), encoder=str(tiny_encoder), tune_encoder=True, out=tmp_path, threads=1, cache=cache
    )
    assert not metrics["tuning"]["in_use"]
    assert metrics["accuracy"] == plain[1]["accuracy"]
    assert not routers.has_tuned_encoder(tmp_path)
    files, expected = ({path.name: path.read_bytes() for path in one.iterdir()} for one in (tmp_path, plain[0]))
    assert files == expected


def test_a_tuned_encoder_is_kept_in_a_further_training(
    built_tuned: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    folder = built_tuned[0]
    more = [*examples(), *(routers.Example(text, "cooking") for text in sentences("cooking", count=20, seed=7))]
    metrics = routers.build(more, encoder=str(folder), out=tmp_path, threads=1)
    assert routers.has_tuned_encoder(tmp_path)
    for name in (NETWORK, UNTUNED_NETWORK):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()
    assert sum(map(sum, metrics["confusion"]["counts"])) == 24 + 20  # the new prompts are held out too
    assert routers.load(tmp_path).predict(["bake bread"])[0].probabilities.shape == (3,)


def test_a_tuned_encoder_is_refused_for_other_prompts(built_tuned: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder = str(built_tuned[0])
    with pytest.raises(DataError, match="tuned on other prompts"):
        routers.build(examples(seed=5), encoder=folder, out=tmp_path, threads=1)
    with pytest.raises(DataError, match="was tuned already"):
        routers.build(examples(), encoder=folder, tune_encoder=True, out=tmp_path, threads=1)


def test_a_folder_without_its_untuned_network_is_refused(
    built_tuned: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(built_tuned[0], tmp_path / "router"))
    (folder / UNTUNED_NETWORK).unlink()
    with pytest.raises(ArtifactError, match="untuned"):
        routers.load_document_encoder(folder)
    with pytest.raises(ArtifactError, match="untuned"):
        routers.build(examples(), encoder=str(folder), out=tmp_path / "next", threads=1)


def test_too_few_prompts_are_refused_before_any_work(tiny_encoder: Path, tmp_path: Path) -> None:
    few = [one for one in examples(count=20) if one.prompt != sentences("astronomy", count=20, seed=0)[0]]
    with pytest.raises(DataError, match=r"needs 20 English prompts of each category; too few: astronomy \(19\)"):
        routers.build(few, encoder=str(tiny_encoder), tune_encoder=True, out=tmp_path / "router", threads=1)
    assert not (tmp_path / "router").exists()


def test_a_tuned_encoder_gains_only_beyond_a_standard_error() -> None:
    gains = [tuned_encoder.Comparison(100, 0.8, 0.8 + gain, gain, 0.02).gains for gain in (-0.03, 0.0, 0.01, 0.03)]
    assert gains == [False, False, False, True]
