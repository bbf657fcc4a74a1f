"""What the document store promises."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from coe.errors import ConfigError, IndexMismatch, RetrievalError
from coe.retrieval.insertion import Collection, Document, DocumentKey, EncoderId, Passage
from coe.retrieval.store import DocumentStore, open_store
from tests.retrieval.conftest import Opened
from tests.retrieval.samples import WordEncoder, document

pytestmark = pytest.mark.anyio
ENCODER = WordEncoder()
TEXTS = {
    "leave": "Parental leave lasts sixteen weeks. Ask the people desk before you go.",
    "travel": "Book trains before planes. Receipts are due within thirty days.",
    "kitchen": "The dishwasher runs at noon. Error E-4711 means that the filter is full.",
}


async def put(store: DocumentStore, *documents: Document) -> None:
    texts = [chunk.text for one in documents for chunk in one.chunks]
    await store.upsert(documents, ENCODER.encode(texts))


async def search_text(store: DocumentStore, text: str, **options: object) -> Sequence[Passage]:
    limits = {"limit": 5} | options
    return await store.search(text, ENCODER.encode([text])[0], **limits)  # type: ignore[arg-type]


async def filled(store: DocumentStore) -> None:
    await put(store, *(document(text, name) for name, text in TEXTS.items()))


async def test_an_empty_store_finds_nothing_and_holds_nothing(store: DocumentStore) -> None:
    assert list(await search_text(store, "parental leave")) == []
    assert list(await store.collections()) == []
    assert await store.digests("handbook") == {}
    assert await store.delete([DocumentKey("leave", "handbook")]) == 0


async def test_the_best_passage_comes_first_with_its_metadata(store: DocumentStore) -> None:
    await filled(store)
    best, *rest = await search_text(store, "how long is parental leave")
    wanted = document(TEXTS["leave"], "leave")
    assert (best.id, best.text) == (wanted.chunks[0].id, wanted.chunks[0].text)
    assert (best.source, best.title, best.collection) == ("leave.md", "Leave", "handbook")
    expected = float(ENCODER.encode(["how long is parental leave"])[0] @ ENCODER.encode([best.text])[0])
    assert best.score == pytest.approx(expected, abs=0.02)
    assert len(rest) == 2


async def test_a_rare_word_is_found_by_itself(store: DocumentStore) -> None:
    await filled(store)
    vector = ENCODER.encode(["book trains before planes"])[0]
    found = await store.search("E-4711", vector, limit=3)
    assert {found[0].source, found[1].source} == {"kitchen.md", "travel.md"}


@pytest.mark.parametrize("text", ["", "   ", "the", '"', "a AND (b", "x\x00y", "ü" * 3000, "*", "-", "\ud800", "'; --"])
async def test_no_question_is_an_error(store: DocumentStore, text: str) -> None:
    await filled(store)
    assert len(await store.search(text, ENCODER.encode(["leave"])[0], limit=2)) == 2


async def test_a_search_is_limited_to_collections(store: DocumentStore) -> None:
    await put(
        store, document("Cats purr.", "cats", collection="pets"), document("Dogs bark.", "dogs", collection="it's")
    )
    assert {one.collection for one in await search_text(store, "cats dogs")} == {"pets", "it's"}
    assert {one.collection for one in await search_text(store, "cats dogs", collections=["it's"])} == {"it's"}
    assert len(await search_text(store, "cats dogs", collections=["it's", "pets", "none"])) == 2
    assert not await search_text(store, "cats dogs", collections=["none"])


async def test_a_tenants_documents_are_visible_to_that_tenant_only(store: DocumentStore) -> None:
    await put(
        store,
        document("The plan of acme is secret.", "plan", tenant="acme"),
        document("The plan of zeta is secret.", "plan", tenant="zeta"),
        document("The plan of everybody is open.", "plan"),
    )

    async def seen(tenant: str | None) -> set[str]:
        found = await search_text(store, "secret plan", tenant=tenant, limit=100)
        return {one.text.split()[3] for one in found}

    assert await seen("acme") == {"acme", "everybody"}
    assert await seen("zeta") == {"zeta", "everybody"}
    assert await seen("other") == await seen(None) == await seen("") == {"everybody"}
    assert await store.digests("handbook", "acme") != await store.digests("handbook")
    assert await store.delete([DocumentKey("plan", "handbook", "acme")]) == 1
    assert await seen("acme") == {"everybody"}
    assert await seen("zeta") == {"zeta", "everybody"}


async def test_a_document_replaces_the_former_one(store: DocumentStore) -> None:
    long = " ".join(f"Rule {number} is about topic {number} and nothing else at all." for number in range(60))
    await put(store, document(long, "rules"), document(TEXTS["leave"], "leave"))
    assert len(document(long, "rules").chunks) > 2
    await put(store, document("Rule one is that there are no rules.", "rules"))
    assert [one.text for one in await search_text(store, "rules", limit=50) if one.source == "rules.md"] == [
        "Rule one is that there are no rules."
    ]
    assert list(await store.collections()) == [Collection("handbook", None, 2, 2)]
    assert not [one for one in await search_text(store, "topic 59", limit=50) if "topic" in one.text]


async def test_collections_and_documents_are_listed(store: DocumentStore) -> None:
    long = " ".join(f"Rule {number} is about topic {number} and nothing else at all." for number in range(60))
    documents = [document(long, "it's; long"), document("Cats purr.", "cats", collection="pets", tenant="acme")]
    await put(store, *documents)
    counted = [Collection("handbook", None, 1, len(documents[0].chunks)), Collection("pets", "acme", 1, 1)]
    assert list(await store.collections()) == counted
    assert await store.digests("pets", "acme") == {"cats": documents[1].digest}


async def test_an_index_of_another_encoder_is_rejected_with_the_remedy(opened: Opened) -> None:
    await filled(opened())
    for other in (EncoderId("other", 64), EncoderId("words", 32)):
        store = opened(other)
        with pytest.raises(IndexMismatch, match="coe index rebuild"):
            await store.search("leave", np.ones(other.dimensions, np.float32), limit=1)
        with pytest.raises(IndexMismatch, match="words"):
            await store.upsert([document("x y", "x")], np.ones((1, other.dimensions), np.float32))
        assert [one.documents for one in await store.collections()] == [3]


async def test_a_rebuild_replaces_the_vectors_while_others_search_and_no_other_writes(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("coe.retrieval.store.LOCK_TIMEOUT_SECONDS", 0.1)
    old, new, other = opened(), opened(EncoderId("other", 32)), WordEncoder(32, "other")
    await filled(old)
    begun, goes_on = threading.Event(), threading.Event()

    def embed(titles: list[str], texts: list[str]) -> NDArray[np.float32]:
        begun.set()
        goes_on.wait(60)
        return other.encode(texts)

    rebuild = asyncio.create_task(new.rebuild(embed))
    await asyncio.to_thread(begun.wait, 60)
    assert len(await search_text(old, "parental leave")) == 3
    with pytest.raises(RetrievalError, match="another process is writing there; try again"):
        await put(old, document("Bees.", "bees"))
    goes_on.set()
    assert await rebuild == 3
    found = await new.search("parental leave", other.encode(["parental leave"])[0], limit=5)
    assert (found[0].source, len(found)) == ("leave.md", 3)
    with pytest.raises(IndexMismatch):
        await search_text(opened(), "parental leave")


async def test_a_failed_rebuild_changes_nothing(opened: Opened) -> None:
    store = opened()
    await filled(store)

    def fail(titles: list[str], texts: list[str]) -> NDArray[np.float32]:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await opened(EncoderId("other", 32)).rebuild(fail)
    assert len(await search_text(store, "parental leave")) == 3


async def test_concurrent_writers(opened: Opened) -> None:
    stores = [opened() for _ in range(4)]
    await asyncio.gather(*(put(one, document(f"Text {i} here.", f"text{i}")) for i, one in enumerate(stores)))
    await asyncio.gather(*(put(one, document(f"Text {i} there.", "same")) for i, one in enumerate(stores)))
    assert list(await opened().collections()) == [Collection("handbook", None, 5, 5)]


async def test_another_store_sees_writes(opened: Opened) -> None:
    reader = opened()
    assert not await search_text(reader, "leave")
    await filled(opened())
    async with asyncio.timeout(60):
        while len(await search_text(reader, "leave")) < 3:
            await asyncio.sleep(0.05)
    await opened().delete([DocumentKey("leave", "handbook")])
    async with asyncio.timeout(60):
        while len(await search_text(reader, "leave")) > 2:
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("url", ["redis://h/0", "lancedb:///", "lancedb://host/x", "lancedb:///a?b"])
def test_an_invalid_address_is_rejected(url: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"retrieval\.store"):
        open_store(url, base=tmp_path, encoder=EncoderId("words", 64))
