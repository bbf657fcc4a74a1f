"""What the tests of verbs share: the tiny encoder, for whole `coe train` runs; a router made of it; a Redis; a shop."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.cli.shop import TAUGHT, Shop
from tests.routers.conftest import WORDS, built, tiny_encoder

__all__ = ["built", "tiny_encoder"]


@pytest.fixture
def shop(tmp_path: Path, built: tuple[Path, dict[str, Any], list[Any]], redis_url: str) -> Shop:
    """With a router, an empty log in Redis, and no plan."""
    made = Shop(tmp_path / "experts.yaml", redis_url)
    made.declare()
    store = made.store("router")
    with store.draft() as draft:
        shutil.copytree(built[0], draft, dirs_exist_ok=True)
        artifact = store.publish(draft, categories=(*WORDS, "general"), data=TAUGHT, metrics={})
    store.promote(artifact.manifest.version, by="train")
    return made
