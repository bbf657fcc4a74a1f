"""A look at the encoder begins with what a glance has seen, by routers of this and the former format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import routers
from routers.heads.fast import FastHeads

Built = tuple[Path, dict[str, Any], list[Any]]


def test_a_text_is_glanced_at_once_and_no_more_of_it_kept_than_is_read(
    built: Built, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    see = FastHeads._see

    def counted(self: FastHeads, text: str) -> Any:
        seen.append(text[:5])
        return see(self, text)

    monkeypatch.setattr(FastHeads, "_see", counted)
    router: Any = routers.load(built[0])
    for text in ("bake", "orbit " * 1000, "bake"):
        router.predict_fast(text, force=True)
        if len(text) > 1000:
            assert len(router.glance._last[0]) < 600
        router.predict([text])
    assert seen == ["bake", "orbit", "bake"]


@pytest.mark.parametrize("former", [2, 3])
def test_a_router_of_a_former_format_is_served(folder: Path, former: int) -> None:
    """Its neighbours lie along the encoder's own axes."""
    router: Any = routers.load(folder)
    vectors = np.random.default_rng(0).normal(size=(len(router.knn.labels), router.encoder.dimensions))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    with np.load(folder / "semantic.npz") as tables:
        kept = {name: tables[name] for name in tables.files if name not in ("axes", "centre", "means")}
    np.savez(folder / "semantic.npz", **kept | {"vectors": vectors})
    config = (folder / "router.json").read_text()
    (folder / "router.json").write_text(config.replace('"format": 4', f'"format": {former}'))
    routers.check(folder)
    served: Any = routers.load(folder)
    np.testing.assert_array_equal(served.knn.vectors, vectors)
    np.testing.assert_allclose(served.knn.place(vectors[:3]), vectors[:3], atol=1e-6)
    np.testing.assert_allclose(served.middles.centre, vectors.mean(axis=0), atol=1e-6)
    assert served.predict(["bake the bread"])
