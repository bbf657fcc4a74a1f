"""A second run touches what changed, and nothing else."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from coe.errors import IndexMismatch
from coe.retrieval import DocumentStore, EncoderId
from coe.retrieval.ingest.indexing import Indexer, IndexingCounts, SourceText
from coe.retrieval.passages import Collection, DocumentKey
from tests.retrieval.conftest import Opened
from tests.retrieval.samples import WordEncoder

pytestmark = pytest.mark.anyio


def text(name: str, words: str, *, title: str = "", tenant: str | None = None) -> SourceText:
    return SourceText(DocumentKey(name, "books", tenant), words, f"{name}.txt", title)


async def given(*texts: SourceText) -> AsyncIterator[SourceText]:
    for one in texts:
        yield one


async def test_a_second_run_embeds_only_what_changed(store: DocumentStore) -> None:
    encoder = WordEncoder()
    indexer = Indexer(store, encoder)
    assert await indexer.add(given(text("a", "Ants."), text("b", "Bees."), text("none", " \n"))) == IndexingCounts(
        2, 0, 0, 1, 2
    )
    encoder.encoded.clear()
    again = [text("a", "Ants."), text("b", "Bees and wasps."), text("c", "Crabs."), text("a", "Ants.", tenant="acme")]
    assert await indexer.add(given(*again)) == IndexingCounts(2, 1, 1, 0, 3)
    assert encoder.encoded == ["Bees and wasps.", "Crabs.", "Ants."]
    assert list(await store.collections()) == [Collection("books", None, 3, 3), Collection("books", "acme", 1, 1)]


async def test_a_document_met_twice_in_one_run_is_kept_as_it_was_met_last(store: DocumentStore) -> None:
    tally = await Indexer(store, WordEncoder()).add(given(text("a", "Old ants."), text("a", "New ants.")))
    assert (tally.added, tally.changed) == (1, 1)
    assert [chunk.text async for one in store.documents() for chunk in one.chunks] == ["New ants."]


async def test_a_document_that_became_empty_is_forgotten(store: DocumentStore) -> None:
    indexer = Indexer(store, WordEncoder())
    await indexer.add(given(text("a", "Ants.")))
    assert (await indexer.add(given(text("a", "")))).empty == 1
    assert not await store.digests("books")


async def test_a_title_helps_to_find_each_of_its_chunks(store: DocumentStore) -> None:
    encoder = WordEncoder()
    await Indexer(store, encoder).add(given(text("a", "Sixteen weeks.", title="Parental leave")))
    assert encoder.encoded == ["Parental leave\nSixteen weeks."]


async def test_many_texts_are_written_in_parts_and_told(store: DocumentStore) -> None:
    heard: list[int] = []
    many = [text(f"t{number}", f"Text number {number} is here.") for number in range(600)]
    tally = await Indexer(store, WordEncoder()).add(given(*many), progress=heard.append)
    assert (tally.added, heard[-1], len(heard)) == (600, 600, 600)
    assert list(await store.collections()) == [Collection("books", None, 600, 600)]


async def test_a_rebuilt_index_holds_the_same_for_the_new_encoder(opened: Opened) -> None:
    await Indexer(opened(), WordEncoder()).add(given(text("a", "Ants march."), text("b", "Bees fly.", tenant="acme")))
    other = WordEncoder(32, "other")
    store = opened(EncoderId("other", 32))
    indexer = Indexer(store, other)
    with pytest.raises(IndexMismatch):
        await indexer.add(given(text("c", "Crabs.")))
    before = [one async for one in store.documents()]
    assert await indexer.rebuild() == 2
    assert [one async for one in store.documents()] == before
    found = await store.search("bees", other.encode(["bees"])[0], tenant="acme", limit=1)
    assert found[0].text == "Bees fly."
    assert (await indexer.add(given(text("a", "Ants march.")))).unchanged == 1
