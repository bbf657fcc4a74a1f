"""The sentence encoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from routers.encoders import OnnxEncoder
from routers.export import quantise

TEXTS = ["bake the stew", "orbit", "a star that a telescope sees " * 8, "", "bake the stew"]


@pytest.fixture
def network(built: tuple[Path, Any, Any], tmp_path: Path) -> Path:
    """One that scales what it is given."""
    quantise(built[0] / "encoder.onnx", out=tmp_path / "small.onnx")
    return tmp_path / "small.onnx"


@pytest.mark.parametrize("threads", [1, 2])
def test_a_vector_depends_neither_on_company_nor_on_threads(
    built: tuple[Path, Any, Any], network: Path, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    monkeypatch.setattr("routers.encoders.GROUP", 2)
    alone = OnnxEncoder.load(network, built[0] / "tokenizer.json")
    expected = np.concatenate([alone.encode([text]) for text in TEXTS])
    told: list[float] = []
    encoder = OnnxEncoder.load(network, built[0] / "tokenizer.json", threads=threads)
    np.testing.assert_array_equal(encoder.encode(TEXTS, told.append), expected)
    assert told == [0.4, 0.8, 1.0]
    assert encoder.encode([]).shape == (0, encoder.dimensions)
