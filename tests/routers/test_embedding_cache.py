"""The cache of exports and embeddings: the same router with and without it, and nothing computed twice."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import routers
from coe.errors import ArtifactError
from routers.encoders import OnnxEncoder
from routers.files import read_arrays
from routers.training import embedding_cache
from tests.routers.conftest import examples

TABLES = {
    "lexical.npz": ("weights", "bias"),
    "static.npz": ("tokens", "weights"),
    "semantic.npz": ("weights", "vectors"),
}


def build(folder: Path, *, encoder: Path, cache: Path | None) -> dict[str, Any]:
    metrics = routers.build(examples(count=12), encoder=str(encoder), out=folder, cache=cache, threads=1)
    return {name: value for name, value in metrics.items() if name not in ("seconds", "bytes")}


@pytest.mark.slow
def test_a_router_is_the_same_with_a_new_cache_a_used_one_and_none(
    tiny_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without = build(tmp_path / "none", encoder=tiny_encoder, cache=None)
    assert build(tmp_path / "new", encoder=tiny_encoder, cache=tmp_path / "cache") == without

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr(embedding_cache, "export_encoder", refuse)
    monkeypatch.setattr(OnnxEncoder, "embed_ids", refuse)
    assert build(tmp_path / "used", encoder=tiny_encoder, cache=tmp_path / "cache") == without
    for name, arrays in TABLES.items():
        for other in ("new", "used"):
            there, found = (read_arrays(tmp_path / folder / name, *arrays) for folder in ("none", other))
            for array in arrays:
                np.testing.assert_array_equal(found[array], there[array])


class CountingEncoder:
    """The encoder of a folder; counts the texts of each call."""

    def __init__(self, folder: Path) -> None:
        self._encoder = OnnxEncoder(folder / "encoder.onnx", folder / "tokenizer.json")
        self.dimensions, self.width = self._encoder.dimensions, self._encoder.width
        self.calls: list[int] = []

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        return self._encoder.tokenize(texts)

    def embed_ids(self, token_ids: Sequence[Sequence[int]], progress: object = None) -> Any:
        self.calls.append(len(token_ids))
        return self._encoder.embed_ids(token_ids)


@pytest.fixture
def counting(built: tuple[Path, dict[str, Any], list[Any]]) -> Any:
    return CountingEncoder(built[0])


def test_only_new_texts_are_embedded_and_rows_keep_their_order(counting: Any, tmp_path: Path) -> None:
    first = embedding_cache.CachedEncoder(counting, tmp_path / "embeddings.npz")
    stew, star = first.encode(["bake the stew", "orbit a star"])
    again = embedding_cache.CachedEncoder(counting, tmp_path / "embeddings.npz")
    rows = again.encode(["orbit a star", "a new one", "bake the stew", "orbit a star"])
    assert counting.calls == [2, 1]
    np.testing.assert_array_equal(rows[[0, 2, 3]], [star, stew, star])
    assert again.encode([]).shape == (0, counting.dimensions)


def test_encoders_do_not_share_embeddings(built: tuple[Path, dict[str, Any], list[Any]], tmp_path: Path) -> None:
    network, tokenizer = built[0] / "encoder.onnx", built[0] / "tokenizer.json"
    embedding_cache.open_encoder(network, tokenizer, threads=1, cache=tmp_path).encode(["a star"])
    other = tmp_path / "tokenizer.json"
    other.write_bytes(tokenizer.read_bytes() + b"\n")
    embedding_cache.open_encoder(network, other, threads=1, cache=tmp_path).encode(["a star"])
    assert len(list(tmp_path.glob("embeddings-*.npz"))) == 2


def test_a_damaged_cache_is_named(counting: Any, tmp_path: Path) -> None:
    (tmp_path / "embeddings.npz").write_bytes(b"not an archive")
    encoder = embedding_cache.CachedEncoder(counting, tmp_path / "embeddings.npz")
    with pytest.raises(ArtifactError, match=r"embeddings\.npz: damaged .*delete it"):
        encoder.encode(["a star"])
