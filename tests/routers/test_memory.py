"""The memory of training: the same router with it and without it, and nothing computed twice."""

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
from routers.training import embedding_cache as remembered
from tests.routers.conftest import examples

TABLES = {
    "lexical.npz": ("weights", "bias"),
    "static.npz": ("tokens", "weights"),
    "semantic.npz": ("weights", "vectors"),
}


def build(folder: Path, *, encoder: Path, memory: Path | None) -> dict[str, Any]:
    metrics = routers.build(examples(count=12), encoder=str(encoder), out=folder, memory=memory, threads=1)
    return {name: value for name, value in metrics.items() if name not in ("seconds", "bytes")}


@pytest.mark.slow
def test_a_router_is_the_same_with_a_new_memory_a_used_one_and_none(
    tiny_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without = build(tmp_path / "none", encoder=tiny_encoder, memory=None)
    assert build(tmp_path / "new", encoder=tiny_encoder, memory=tmp_path / "memory") == without

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr(remembered, "export_encoder", refuse)
    monkeypatch.setattr(OnnxEncoder, "read_ids", refuse)
    assert build(tmp_path / "used", encoder=tiny_encoder, memory=tmp_path / "memory") == without
    for name, arrays in TABLES.items():
        for other in ("new", "used"):
            there, found = (read_arrays(tmp_path / folder / name, *arrays) for folder in ("none", other))
            for array in arrays:
                np.testing.assert_array_equal(found[array], there[array])


class Counted:
    """The encoder of a folder, which tells what it was asked for."""

    def __init__(self, folder: Path) -> None:
        self._encoder = OnnxEncoder.load(folder / "encoder.onnx", folder / "tokenizer.json")
        self.dimensions, self.width = self._encoder.dimensions, self._encoder.width
        self.asked: list[int] = []

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        return self._encoder.tokenize(texts)

    def read_ids(self, tokens: Sequence[Sequence[int]], progress: object = None) -> Any:
        self.asked.append(len(tokens))
        return self._encoder.read_ids(tokens)


@pytest.fixture
def counted(built: tuple[Path, dict[str, Any], list[Any]]) -> Any:
    return Counted(built[0])


def test_only_texts_not_met_before_are_embedded_and_rows_keep_their_order(counted: Any, tmp_path: Path) -> None:
    first = remembered.CachedEncoder(counted, tmp_path / "readings.npz")
    stew, star = first.encode(["bake the stew", "orbit a star"])
    again = remembered.CachedEncoder(counted, tmp_path / "readings.npz")
    rows = again.encode(["orbit a star", "a new one", "bake the stew", "orbit a star"])
    assert counted.asked == [2, 1]
    np.testing.assert_array_equal(rows[[0, 2, 3]], [star, stew, star])
    assert again.encode([]).shape == (0, counted.dimensions)


def test_another_encoder_does_not_take_these_vectors(
    built: tuple[Path, dict[str, Any], list[Any]], tmp_path: Path
) -> None:
    network, tokenizer = built[0] / "encoder.onnx", built[0] / "tokenizer.json"
    remembered.open_encoder(network, tokenizer, threads=1, memory=tmp_path).encode(["a star"])
    other = tmp_path / "tokenizer.json"
    other.write_bytes(tokenizer.read_bytes() + b"\n")
    remembered.open_encoder(network, other, threads=1, memory=tmp_path).encode(["a star"])
    assert len(list(tmp_path.glob("readings-*.npz"))) == 2


def test_a_damaged_memory_is_named(counted: Any, tmp_path: Path) -> None:
    (tmp_path / "readings.npz").write_bytes(b"not an archive")
    encoder = remembered.CachedEncoder(counted, tmp_path / "readings.npz")
    with pytest.raises(ArtifactError, match=r"readings\.npz: damaged .*delete it"):
        encoder.encode(["a star"])
