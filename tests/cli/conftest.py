"""What the tests of verbs share: the tiny encoder, for whole `coe train` runs; a router made of it; a Redis; a shop."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from coe.artifacts import ArtifactStore
from tests.cli.shop import Shop
from tests.records.redis_server import MISSING, RedisServer, installed
from tests.routers.conftest import WORDS, built, tiny_encoder

__all__ = ["built", "tiny_encoder"]


@pytest.fixture(scope="package")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    if not installed():
        pytest.skip(MISSING)
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.kill()


@pytest.fixture
def shop(tmp_path: Path, built: tuple[Path, dict[str, Any], list[Any]], redis: RedisServer) -> Shop:
    """With a router, an empty log in Redis, and no plan."""
    with Redis.from_url(redis.url) as client:
        client.flushall()
    made = Shop(tmp_path / "experts.yaml", redis.url)
    made.declare()
    with_router(made, built[0])
    return made


def with_router(shop: Shop, folder: Path) -> None:
    store = ArtifactStore(shop.settings.artifacts, "router")
    with store.draft() as draft:
        shutil.copytree(folder, draft, dirs_exist_ok=True)
        made = store.publish(draft, categories=(*WORDS, "general"), data="d", metrics={})
    store.promote(made.manifest.version, by="train")
