"""Fixtures and settings for all tests."""

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
from redis import Redis

from tests.records.redis_server import RedisServer, running

# The same examples in each run, without a deadline: a run fails for a change, not by chance or on a busy machine.
# `pytest --hypothesis-profile default` searches for new ones.
hypothesis.settings.register_profile(
    "repeatable", derandomize=True, deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("repeatable")


# Collections of garbage take a third of the collection of tests, in which nearly all that is made stays.
gc.disable()


def pytest_collection_finish() -> None:
    """Collect garbage again, but not among what the collection of tests made."""
    gc.enable()
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run files with slow tests first, so that no process of several starts one at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def converted_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder into which all test processes of a run convert the packaged model, once: that takes 15 s of processor
    time. COE_TEST_CACHE names one that is kept."""
    base = tmp_path_factory.getbasetemp()
    run = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    return Path(os.environ.get("COE_TEST_CACHE", run / "models"))


@pytest.fixture(scope="module")
def shared_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A Redis for the tests of one module, which reach it by `redis_url`. It stops before the next module, because some
    modules check that no process is left."""
    with running(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def redis_url(shared_redis: RedisServer) -> str:
    """The URL of an empty Redis."""
    with Redis.from_url(shared_redis.url) as client:
        client.flushall()
        client.config_resetstat()
    return shared_redis.url


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis for one test, which may kill or freeze it."""
    (tmp_path / "redis").mkdir()
    with running(tmp_path / "redis") as server:
        yield server
