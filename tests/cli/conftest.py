"""What the tests of verbs share: the tiny encoder, for whole `coe train` runs; a router made of it; a Redis; a shop."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from tests.cli.shop import TAUGHT, Shop
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
    store = made.store("router")
    with store.draft() as draft:
        shutil.copytree(built[0], draft, dirs_exist_ok=True)
        artifact = store.publish(draft, categories=(*WORDS, "general"), data=TAUGHT, metrics={})
    store.promote(artifact.manifest.version, by="train")
    return made
