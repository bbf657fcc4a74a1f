"""The Redis store: no keys are left behind, and errors name the server and the remedy."""

from __future__ import annotations

from collections.abc import Awaitable

import pytest
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from coe.errors import ConfigError, RetrievalError
from coe.retrieval import open_store
from coe.retrieval.ingest.indexing import Indexer, encoder_id
from coe.retrieval.passages import DocumentKey
from coe.retrieval.redis.search import INDEX_KEY
from coe.retrieval.redis.store import IndexRebuilding, RedisStore, documents_client
from tests.retrieval.conftest import WORDS
from tests.retrieval.samples import WordEncoder
from tests.retrieval.test_indexing import given, text

pytestmark = pytest.mark.anyio


async def key_suffixes(url: str) -> set[bytes]:
    async with Redis.from_url(url) as client:
        return {key.rpartition(b":")[2] for key in await client.keys()}


async def test_deleted_documents_leave_no_keys(redis_url: str) -> None:
    store = RedisStore(redis_url, WORDS)
    texts = [text(f"t{number}", f"Ants and bees number {number}. " * (number + 1)) for number in range(20)]
    await Indexer(store, WordEncoder()).add(given(*texts))
    assert "vectors" in str(await key_suffixes(redis_url))
    assert await store.delete([DocumentKey(f"t{number}", "books") for number in range(20)]) == 20
    assert await key_suffixes(redis_url) == {b"index", b"next", b"parts"}
    await store.aclose()


async def test_a_rebuild_expires_the_former_version_and_a_failed_one_leaves_no_keys(redis_url: str) -> None:
    store = RedisStore(redis_url, WORDS)
    indexer = Indexer(store, WordEncoder())
    await indexer.add(given(text("a", "Ants.")))
    async with Redis.from_url(redis_url) as client:
        former = (await client.hget(INDEX_KEY, "version")).decode()
        await indexer.rebuild()
        kept = await client.keys(f"*:{former}:*")
        assert kept
        assert all([0 < await client.ttl(key) <= 60 for key in kept])
        before = set(await client.keys())
        indexer = Indexer(store, Failing())
        with pytest.raises(ZeroDivisionError):
            await indexer.rebuild()
        assert set(await client.keys()) == before
    await store.aclose()


class Failing(WordEncoder):
    def encode(self, texts: object) -> None:  # type: ignore[override]
        raise ZeroDivisionError


async def test_no_other_writer_writes_during_a_rebuild(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coe.retrieval.redis.store.REBUILD_WAIT_SECONDS", 0.1)
    store, other = RedisStore(redis_url, WORDS), RedisStore(redis_url, WORDS)
    await Indexer(store, WordEncoder()).add(given(text("a", "Ants.")))
    async with store.rebuilding():
        with pytest.raises(IndexRebuilding, match="try again later"):
            await Indexer(other, WordEncoder()).add(given(text("b", "Bees.")))
        with pytest.raises(IndexRebuilding):
            await other.delete([DocumentKey("a", "books")])
    await Indexer(other, WordEncoder()).add(given(text("b", "Bees.")))
    assert set(await other.digests("books")) == {"b"}
    for one in (store, other):
        await one.aclose()


async def test_an_unavailable_or_too_old_server_is_named_with_the_remedy() -> None:
    store = RedisStore("redis://:secret@127.0.0.1:1/0", encoder_id(WordEncoder()))
    with pytest.raises(RetrievalError, match=r"redis at 127\.0\.0\.1:1: .*check that it runs") as raised:
        await store.search("x", WordEncoder().encode(["x"])[0], limit=1)
    assert "secret" not in str(raised.value)
    await store.aclose()

    async def old() -> None:
        raise ResponseError("unknown command 'VSIM', with args beginning with: ")

    connection = documents_client("redis://127.0.0.1:1/0")
    command: Awaitable[None] = old()
    with pytest.raises(RetrievalError, match="Redis 8 or newer"):
        await connection.run(command)
    await connection.aclose()


@pytest.mark.parametrize(
    "url", ["redis://h:port/0", "lancedb:///", "lancedb://host/x", "lancedb:///a?b", "sqlite:///x"]
)
def test_an_invalid_address_is_rejected(url: str, tmp_path: object) -> None:
    with pytest.raises(ConfigError, match=r"retrieval\.store"):
        open_store(url, base=tmp_path, encoder=WORDS)  # type: ignore[arg-type]
