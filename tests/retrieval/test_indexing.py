"""Indexing again writes only what changed."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from coe.retrieval.indexing import Indexer, IndexingCounts, SourceText
from coe.retrieval.insertion import Collection, DocumentKey
from coe.retrieval.store import DocumentStore
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


async def test_a_document_that_became_empty_is_deleted(store: DocumentStore) -> None:
    indexer = Indexer(store, WordEncoder())
    await indexer.add(given(text("a", "Ants.")))
    assert (await indexer.add(given(text("a", "")))).empty == 1
    assert not await store.digests("books")


async def test_many_texts_are_written_in_batches_with_progress(store: DocumentStore) -> None:
    progress: list[int] = []
    many = [text(f"t{number}", f"Text number {number} is here.") for number in range(600)]
    counts = await Indexer(store, WordEncoder()).add(given(*many), progress=progress.append)
    assert (counts.added, progress[-1], len(progress)) == (600, 600, 600)
    assert list(await store.collections()) == [Collection("books", None, 600, 600)]
