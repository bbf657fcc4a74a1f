"""`/v1/documents`: administrators list, add, search and delete documents of the store that is in service.

Uploads are chunked, embedded and indexed before the response, so that they are searchable then. The store must be
declared in experts.yaml (`retrieval.store`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import Annotated

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from coe.artifacts.active_state import DocumentIndex
from coe.errors import (
    ConfigError,
    DocumentNotFound,
    DocumentsConflict,
    DocumentsUnavailable,
    Draining,
    RetrievalError,
)
from coe.retrieval.indexing import Indexer, SourceText, normalize_text
from coe.retrieval.insertion import MAX_PASSAGES, DocumentKey
from gateway.endpoints.handler import json_of, json_response, list_response, query_of
from gateway.request.body import RequestModel
from gateway.services import Services

DEFAULT_COLLECTION = "documents"
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
PRINTABLE = r"^[^\x00-\x1f\x7f]*$"
NO_NUL = r"^[^\x00]*$"
MAX_DOCUMENTS = 100
MAX_LINE_CHARACTERS = 512
MAX_QUERY_CHARACTERS = 8_000
MAX_BODY_BYTES = 4 * 2**20
SECONDS = 300.0
"""Time limit of a request. What a cancelled upload wrote stays; the same upload completes it."""
MAX_CONCURRENT = 8
"""Requests at a time; others wait. Uploads among them are indexed one after the other."""
RETRY_AFTER = 5.0

_Name = Annotated[str, Field(pattern=NAME)]
_Id = Annotated[str, Field(min_length=1, max_length=MAX_LINE_CHARACTERS, pattern=PRINTABLE)]
_Line = Annotated[str, Field(max_length=MAX_LINE_CHARACTERS, pattern=PRINTABLE)]
_log = logging.getLogger("gateway")


class DocumentUpload(RequestModel):
    """One document; it replaces the document with its id in the same collection of the same tenant."""

    id: _Id
    text: Annotated[str, Field(min_length=1, pattern=NO_NUL)]
    """Plain text or Markdown."""
    title: _Line = ""
    source: _Line | None = None
    """The source that responses cite; by default the id."""


class Upload(RequestModel):
    """Documents for one collection."""

    documents: Annotated[list[DocumentUpload], Field(min_length=1, max_length=MAX_DOCUMENTS)]
    collection: _Name = DEFAULT_COLLECTION
    tenant: _Name | None = None
    """The tenant that owns them; by default all tenants can read them."""


class PassageQuery(RequestModel):
    """A search for passages."""

    query: Annotated[str, Field(min_length=1, max_length=MAX_QUERY_CHARACTERS)]
    collections: Annotated[tuple[_Name, ...], Field(max_length=100)] = ()
    """The collections to search; all if empty."""
    tenant: _Name | None = None
    """Searches this tenant's documents and those of all tenants."""
    limit: Annotated[int, Field(ge=1, le=MAX_PASSAGES)] = 5


class DocumentLocation(RequestModel):
    """The collection and the owner of a document."""

    collection: _Name = DEFAULT_COLLECTION
    tenant: _Name | None = None


class DocumentPage(RequestModel):
    """The documents to list; without a collection, the collections."""

    collection: _Name | None = None
    tenant: _Name | None = None
    after: _Line = ""
    """The last id of the previous page."""
    limit: Annotated[int, Field(ge=1, le=1000)] = 100


class Documents:
    """The document endpoints, over the index in service."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._writing = asyncio.Lock()
        self._slots = asyncio.Semaphore(MAX_CONCURRENT)

    async def list(self, request: Request) -> Response:
        """List collections, or the documents of one."""
        async with self._index() as index:
            page = query_of(request, DocumentPage)
            if page.collection is None:
                collections = [asdict(one) for one in await index.store.collections()]
                return json_response({"object": "list", "data": collections, "has_more": False})
            known = sorted((await index.store.digests(page.collection, page.tenant)).items())
            rest = [(name, digest) for name, digest in known if name > page.after]
            data = [{"id": name, "digest": digest} for name, digest in rest[: page.limit]]
            return json_response({"object": "list", "data": data, "has_more": len(rest) > page.limit})

    async def upload(self, request: Request) -> Response:
        """Add or replace documents."""
        async with self._index() as index:
            upload = await json_of(request, Upload, limit=MAX_BODY_BYTES)
            ids = [document.id for document in upload.documents]
            if repeated := sorted({one for one in ids if ids.count(one) > 1}):
                raise DocumentsConflict(f"documents: the id {repeated[0]!r} comes twice", param="documents")
            async with self._writing:
                tally = await Indexer(index.store, index.encoder).add(_texts(upload))
            return json_response({"object": "documents", **asdict(tally)})

    async def search(self, request: Request) -> Response:
        """Search passages."""
        async with self._index() as index:
            search = await json_of(request, PassageQuery, limit=MAX_BODY_BYTES)
            vector = (await asyncio.to_thread(index.encoder.encode, [search.query]))[0]
            found = await index.store.search(
                search.query, vector, collections=search.collections, tenant=search.tenant, limit=search.limit
            )
            return list_response([asdict(one) for one in found])

    async def delete(self, request: Request) -> Response:
        """Delete a document."""
        async with self._index() as index:
            where, name = query_of(request, DocumentLocation), request.path_params["id"]
            async with self._writing:
                count = await index.store.delete([DocumentKey(name, where.collection, where.tenant)])
            if not count:
                owner = where.tenant or "all tenants"
                raise DocumentNotFound(f"no document {name[:64]!r} in {where.collection!r} of {owner}")
            return json_response({"object": "document", "id": name, "deleted": True})

    @asynccontextmanager
    async def _index(self) -> AsyncIterator[DocumentIndex]:
        """The index, for one request within the time limit. Raises a RequestError."""
        index = self._services.snapshot.index
        if index is None:
            raise DocumentNotFound("no document store is declared (retrieval.store in experts.yaml)")
        if self._services.admission.closed:
            raise Draining("this gateway is shutting down; send the request again", retry_after=RETRY_AFTER)
        try:
            async with asyncio.timeout(SECONDS), self._slots:
                yield index
        except (RetrievalError, ConfigError) as error:
            _log.warning("documents: %s", error)
            raise DocumentsUnavailable(str(error), retry_after=RETRY_AFTER) from error
        except TimeoutError:
            why = f"the request was not completed within {SECONDS:g} s; send fewer documents at a time"
            raise DocumentsUnavailable(why, retry_after=RETRY_AFTER) from None


async def _texts(upload: Upload) -> AsyncIterator[SourceText]:
    for one in upload.documents:
        key = DocumentKey(one.id, upload.collection, upload.tenant)
        yield SourceText(key, normalize_text(one.text), one.source if one.source is not None else one.id, one.title)
