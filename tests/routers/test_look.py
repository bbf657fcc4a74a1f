"""A look at the encoder begins with what a glance has seen, by routers of this and the former format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import routers
from routers.cheap import CheapHeads

Built = tuple[Path, dict[str, Any], list[Any]]


def test_a_text_is_glanced_at_once_and_no_more_of_it_kept_than_is_read(
    built: Built, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    see = CheapHeads._see

    def counted(self: CheapHeads, text: str) -> Any:
        seen.append(text[:5])
        return see(self, text)

    monkeypatch.setattr(CheapHeads, "_see", counted)
    router: Any = routers.load(built[0])
    for text in ("bake", "orbit " * 1000, "bake"):
        router.peek(text, hurried=True)
        if len(text) > 1000:
            assert len(router.glance._last[0]) < 600
        router.predict([text])
    assert seen == ["bake", "orbit", "bake"]


def test_a_router_of_the_former_format_is_served(folder: Path) -> None:
    config = (folder / "router.json").read_text()
    (folder / "router.json").write_text(config.replace('"format": 3', '"format": 2'))
    assert '"format": 2' in (folder / "router.json").read_text()
    routers.check(folder)
    assert routers.load(folder).predict(["bake the bread"])
