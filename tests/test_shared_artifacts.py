"""Artifacts that machines share through a real Redis."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis

from coe.artifacts.artifact_sync import ArtifactSync
from coe.artifacts.manifest import Artifact
from coe.artifacts.redis import RedisArtifacts, open_shared
from coe.artifacts.store import ArtifactStore, mirror
from coe.errors import ArtifactError, ConfigError
from coe.settings import Settings
from tests.records.redis_server import MISSING, RedisServer, installed

pytestmark = pytest.mark.skipif(not installed(), reason=MISSING)


@pytest.fixture
def redis(redis_url: str) -> Iterator[Redis]:
    with Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture
def share(redis_url: str) -> Iterator[RedisArtifacts]:
    share = RedisArtifacts(redis_url)
    yield share
    share.close()


def made(store: ArtifactStore, content: str) -> str:
    with store.draft() as draft:
        (draft / "weights.bin").write_text(content)
        return store.publish(draft, categories=["a"], data="d", metrics={}).manifest.version


def in_use(store: ArtifactStore) -> Artifact | None:
    mirror([store])
    return store.current()


def test_what_is_promoted_here_is_in_use_there_with_its_history(tmp_path: Path, share: RedisArtifacts) -> None:
    here, there = (ArtifactStore(tmp_path / name, "router", share) for name in "ab")
    assert in_use(there) is None
    first, second = made(here, "one"), made(here, "two")
    here.promote(first, why="first")
    here.promote(second, by="train", why="better")
    found = in_use(there)
    assert found is not None
    assert (found.manifest.version, (found.folder / "weights.bin").read_text()) == (second, "two")
    assert there.history() == here.history()
    there.promote(there.published(first).manifest.version, by="rollback")  # fetched, as it never was here
    assert in_use(here) == here.published(first)
    there.clear()
    assert in_use(here) is None


def test_a_version_whose_folder_was_deleted_is_copied_again(tmp_path: Path, share: RedisArtifacts) -> None:
    here, there = (ArtifactStore(tmp_path / name, "router", share) for name in "ab")
    here.promote(made(here, "one"))
    found = in_use(there)
    assert found is not None
    shutil.rmtree(found.folder)
    assert in_use(there) == found


def test_a_damaged_version_is_refused_and_the_last_good_one_stays(
    tmp_path: Path, share: RedisArtifacts, redis: Redis
) -> None:
    here, there = (ArtifactStore(tmp_path / name, "router", share) for name in "ab")
    good, bad = made(here, "good"), made(here, "bad")
    here.promote(good)
    assert in_use(there) is not None
    here.promote(bad)
    whole = redis.hget("coe:artifacts:router", f"tar:{bad}")
    assert whole
    redis.hset("coe:artifacts:router", f"tar:{bad}", whole[: len(whole) // 2])
    with pytest.raises(ArtifactError, match="damaged"):
        mirror([there])
    assert there.in_use() == good
    here.promote(bad)  # which mends it
    assert in_use(there) == there.published(bad)


def test_without_redis_nothing_changes_and_a_gateway_serves_on(tmp_path: Path, redis_server: RedisServer) -> None:
    share = RedisArtifacts(redis_server.url)
    settings = Settings.read({"COE_HOME": str(tmp_path / "home")})
    store = ArtifactStore(settings.artifacts, "router", share)
    first, second = made(store, "one"), made(store, "two")
    store.promote(first)
    follower = ArtifactSync(settings, share)
    follower.sync()
    assert not follower.outage.active
    redis_server.kill()
    with pytest.raises(ArtifactError, match="check that it runs"):
        store.promote(second)
    follower.sync()
    assert follower.outage.active
    assert store.in_use() == first
    redis_server.start()  # empty, as it keeps nothing
    follower.sync()
    assert (follower.outage.active, store.in_use()) == (False, first)
    share.close()


def test_small_files_beside_them_reach_others_too(tmp_path: Path, share: RedisArtifacts) -> None:
    share.fetch_file("rounds.json", tmp_path / "new")
    assert not (tmp_path / "new").exists(), "nothing was reported yet"
    for content in (b"one", b"two", b"two"):
        share.put_file("rounds.json", content)
        share.fetch_file("rounds.json", tmp_path / "new")
        assert (tmp_path / "new" / "rounds.json").read_bytes() == content


def test_a_folder_is_not_shared_and_a_wrong_address_is_refused() -> None:
    assert open_shared("folder") is None
    with pytest.raises(ConfigError, match="artifacts: not a Redis address"):
        open_shared("redis://h:port/0")
