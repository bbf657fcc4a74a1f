"""`coe index`: fills, lists and searches the document store from which requests may get passages."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from coe.artifacts.active_state import check_router, open_index
from coe.cli.common import Config, Json, print_result, settings_for, table
from coe.errors import DocumentError
from coe.retrieval.indexing import Indexer, IndexingCounts, SourceText, TokenizingEncoder, convert, find_files
from coe.retrieval.insertion import MAX_PASSAGES, DocumentKey
from coe.retrieval.store import DocumentStore
from coe.terminal import print_error, progress_bar

T = TypeVar("T")
DEFAULT_COLLECTION = "documents"
MAX_SHOWN_CHARACTERS = 240
"""Characters of a passage that a search prints."""
_NAME_PATTERN = "[A-Za-z0-9][A-Za-z0-9._-]{0,63}"

app = typer.Typer(no_args_is_help=True, help="Fill, list and search the document store.")


def _name(value: str | None) -> str | None:
    if value is not None and not re.fullmatch(_NAME_PATTERN, value):
        raise typer.BadParameter(f"{value!r} is not a name (letters, digits and ._- up to 64)")
    return value


Paths = Annotated[list[str], typer.Argument(help="Files or folders: text, Markdown, HTML, PDF.")]
Ids = Annotated[list[str], typer.Argument(help="Names of documents, as `coe index list --documents` prints them.")]
Query = Annotated[str, typer.Argument(metavar="TEXT")]
Collection = Annotated[str, typer.Option("--collection", callback=_name, help="The collection.")]
Collections = Annotated[list[str] | None, typer.Option("--collection", help="Search this one; may be repeated.")]
Tenant = Annotated[
    str | None, typer.Option("--tenant", callback=_name, help="Tenant of the documents [default: shared by all].")
]
Prune = Annotated[bool, typer.Option("--prune", help="Remove the collection's other documents.")]
Limit = Annotated[int, typer.Option("-n", "--limit", min=1, max=MAX_PASSAGES, help="How many passages.")]
Documents = Annotated[bool, typer.Option("--documents", help="List the names of the collection's documents.")]


@app.command("add")
def add(
    paths: Paths,
    collection: Collection = DEFAULT_COLLECTION,
    tenant: Tenant = None,
    prune: Prune = False,
    config: Config = None,
    json: Json = False,
) -> None:
    """Index files; unchanged ones are skipped. Exit 1 where a file was refused."""
    base, found = settings_for(config).config.parent.resolve(), find_files(paths)
    refused: list[tuple[str, str]] = []

    def key_of(name: str) -> DocumentKey:
        return DocumentKey(name, collection, tenant)

    def name_of(file: Path) -> str:
        """A file's name in the store: its path from the folder of experts.yaml, or absolute where it is elsewhere."""
        real = file.resolve()
        return (real.relative_to(base) if real.is_relative_to(base) else real).as_posix()

    async def texts() -> AsyncIterator[SourceText]:
        for file, refusal in found.items():
            try:
                if refusal:
                    raise DocumentError(refusal)
                converted = await convert(file)
            except DocumentError as error:
                refused.append((str(file), str(error)))
                continue
            yield SourceText(key_of(name_of(file)), converted.text, name_of(file), converted.title)

    async def run(store: DocumentStore, encoder: TokenizingEncoder) -> tuple[IndexingCounts, int]:
        with progress_bar("indexing") as progress:
            counts = await Indexer(store, encoder).add(
                texts(), progress=lambda done: progress("indexing", done / max(1, len(found))) if progress else None
            )
        if not prune or refused:
            return counts, 0
        current = {name_of(file) for file in found}
        others = [name for name in await store.digests(collection, tenant) if name not in current]
        return counts, await store.delete(list(map(key_of, others)))

    counts, removed = _with_store(config, run)
    if not json:
        for path, why in refused:
            print_error(f"{path}: {why}")
    named = [f"{counts.added} added", f"{counts.changed} changed", f"{counts.unchanged} unchanged"]
    more = ((counts.empty, "empty"), (removed, "removed"), (len(refused), "refused"))
    named += [f"{count} {what}" for count, what in more if count]
    summary = {**asdict(counts), "removed": removed, "refused": [{"path": path, "why": why} for path, why in refused]}
    print_result(summary, f"{', '.join(named)} ({counts.chunks:,} chunks embedded)", json=json)
    if refused:
        raise typer.Exit(1)


@app.command("list")
def list_(
    collection: Collection = DEFAULT_COLLECTION,
    documents: Documents = False,
    tenant: Tenant = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """List the collections of the store, or the documents of one."""
    if documents:
        names = sorted(_with_store(config, lambda store, _: store.digests(collection, tenant)))
        print_result(names, names, json=json)
        return
    there = _with_store(config, lambda store, _: store.collections())
    rows = [(one.name, one.tenant or "(everybody)", f"{one.documents:,}", f"{one.chunks:,}") for one in there]
    lines = table(("collection", "tenant", ">documents", ">chunks"), rows)
    print_result([asdict(one) for one in there], lines, json=json)


@app.command("remove")
def remove(
    ids: Ids,
    collection: Collection = DEFAULT_COLLECTION,
    tenant: Tenant = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """Remove documents. Exit 1 where one was not found."""
    keys = [DocumentKey(one, collection, tenant) for one in ids]
    count = _with_store(config, lambda store, _: store.delete(keys))
    print_result({"removed": count}, f"{count} of {len(ids)} documents removed", json=json)
    if count < len(set(ids)):
        raise typer.Exit(1)


@app.command("search")
def search(
    text: Query,
    limit: Limit = 5,
    collection: Collections = None,
    tenant: Tenant = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """Show the passages nearest to a text; a request gets those of them that pass the gate and its limits."""
    found = _with_store(
        config,
        lambda store, encoder: store.search(
            text, encoder.encode([text])[0], collections=collection or [], tenant=tenant, limit=limit
        ),
    )
    lines = []
    for number, one in enumerate(found, 1):
        flat = " ".join(one.text.split())
        shown = flat if len(flat) <= MAX_SHOWN_CHARACTERS else f"{flat[:MAX_SHOWN_CHARACTERS]}…"
        lines.append(f"{number}. {one.score:.2f}  {one.source}{f'  {one.title}' if one.title else ''}\n   {shown}")
    print_result([asdict(one) for one in found], lines, json=json)


@app.command("rebuild")
def rebuild(config: Config = None, json: Json = False) -> None:
    """Embed all stored documents with the encoder of the router in use; searches use the old index until then."""

    async def run(store: DocumentStore, encoder: TokenizingEncoder) -> int:
        return await Indexer(store, encoder).rebuild()

    count = _with_store(config, run)
    print_result({"documents": count}, f"{count} documents embedded", json=json)


def _with_store(config: Path | None, use: Callable[[DocumentStore, TokenizingEncoder], Awaitable[T]]) -> T:
    """The result of a function of the open store and the encoder of the router in use."""
    settings = settings_for(config)
    registry, artifact = check_router(settings)

    async def run() -> T:
        index = open_index(settings, registry, artifact.folder, threads=max(1, (os.cpu_count() or 1) - 1))
        try:
            return await use(index.store, index.encoder)
        finally:
            await index.store.aclose()

    return asyncio.run(run())
