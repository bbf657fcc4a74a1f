"""Fixtures of the CLI tests: a tiny encoder for whole `coe train` runs, a declaration, and a service with a log."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.cli.logged_service import TRAINING_DIGEST, LoggedService
from tests.routers.conftest import WORDS, built, exported, tiny_encoder

__all__ = ["built", "exported", "tiny_encoder"]

DECLARED = """\
version: 1
categories: [{name: code, description: c}, {name: general, description: g}]
experts: [{name: small, model: m, runtime: external, base_url: 'http://127.0.0.1:9/v1'}]
assignment: {general: small}
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """The path of an experts.yaml with one external expert."""
    path = tmp_path / "experts.yaml"
    path.write_text(DECLARED)
    return path


@pytest.fixture
def service(tmp_path: Path, built: tuple[Path, dict[str, Any], list[Any]], redis_url: str) -> LoggedService:
    """A service with a router, an empty log in Redis, and no plan."""
    made = LoggedService(tmp_path / "experts.yaml", redis_url)
    made.declare()
    store = made.store("router")
    with store.draft() as draft:
        shutil.copytree(built[0], draft, dirs_exist_ok=True)
        artifact = store.publish(draft, categories=(*WORDS, "general"), data=TRAINING_DIGEST, metrics={})
    store.promote(artifact.manifest.version, by="train")
    return made
