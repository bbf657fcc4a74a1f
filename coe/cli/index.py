"""`coe index`: fills, lists and searches the document store from which requests may get passages."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from coe.artifacts.active_state import check_router, open_index
from coe.cli.common import Config, Json, print_result, settings_for
from coe.errors import DocumentError
from coe.foreground import progress_bar
from coe.retrieval.ingest.conversion import convert, find_files
from coe.retrieval.ingest.indexing import Indexer, IndexingCounts, SourceText, TokenizingEncoder
from coe.retrieval.passages import MAX_PASSAGES, DocumentKey
from coe.retrieval.store import DocumentStore
from coe.terminal import print_error, print_json, print_line

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


@dataclass(slots=True)
class _Run:
    """The result of `coe index add`: counts, and the refused files with the reason."""

    tally: IndexingCounts = field(default_factory=IndexingCounts)
    refused: list[tuple[str, str]] = field(default_factory=list)
    removed: int = 0


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
    settings = settings_for(config)
    found = find_files(paths)
    place = settings.config.parent, collection, tenant
    run = _with_store(config, partial(_add, found=found, place=place, prune=prune))
    _report(run, json)
    if run.refused:
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
    lines = (
        f"{one.name:24} {one.tenant or '(everybody)':24} {one.documents:8,} documents {one.chunks:10,} chunks"
        for one in there
    )
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
    count = _with_store(config, _rebuild)
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


async def _add(
    store: DocumentStore,
    encoder: TokenizingEncoder,
    found: Mapping[Path, str],
    *,
    place: tuple[Path, str, str | None],
    prune: bool,
) -> _Run:
    run, (base, collection, tenant) = _Run(), place
    with progress_bar("indexing") as progress:
        texts = _texts(found, run, place=place)
        run.tally = await Indexer(store, encoder).add(texts, progress=_report_share("indexing", len(found), progress))
    if prune and not run.refused:
        current = {_id(file, base) for file in found}
        others = [name for name in await store.digests(collection, tenant) if name not in current]
        run.removed = await store.delete([DocumentKey(name, collection, tenant) for name in others])
    return run


async def _texts(
    found: Mapping[Path, str], run: _Run, *, place: tuple[Path, str, str | None]
) -> AsyncIterator[SourceText]:
    base, collection, tenant = place
    for file, refusal in found.items():
        try:
            if refusal:
                raise DocumentError(refusal)
            converted = await convert(file)
        except DocumentError as error:
            run.refused.append((str(file), str(error)))
            continue
        name = _id(file, base)
        yield SourceText(DocumentKey(name, collection, tenant), converted.text, name, converted.title)


def _id(file: Path, base: Path) -> str:
    """A file's name in the store: its path from the folder of experts.yaml, or absolute where it is elsewhere."""
    real = file.resolve()
    base = base.resolve()
    return (real.relative_to(base) if real.is_relative_to(base) else real).as_posix()


async def _rebuild(store: DocumentStore, encoder: TokenizingEncoder) -> int:
    total = sum(one.documents for one in await store.collections())
    with progress_bar("embedding") as progress:
        return await Indexer(store, encoder).rebuild(progress=_report_share("embedding", total, progress))


def _report_share(
    stage: str, total: int, progress: Callable[[str, float], None] | None
) -> Callable[[int], None] | None:
    """A function of the number done that updates the progress bar; None without a bar."""
    if progress is None:
        return None
    return lambda done: progress(stage, done / max(1, total))


def _report(run: _Run, json: bool) -> None:
    if json:
        refused = [{"path": path, "why": why} for path, why in run.refused]
        print_json({**asdict(run.tally), "removed": run.removed, "refused": refused})
        return
    for path, why in run.refused:
        print_error(f"{path}: {why}")
    tally = run.tally
    parts = [f"{tally.added} added", f"{tally.changed} changed", f"{tally.unchanged} unchanged"]
    for count, what in ((tally.empty, "empty"), (run.removed, "removed"), (len(run.refused), "refused")):
        parts += [f"{count} {what}"] if count else []
    print_line(f"{', '.join(parts)} ({tally.chunks:,} chunks embedded)")
