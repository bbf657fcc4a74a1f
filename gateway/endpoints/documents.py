"""`/v1/documents`: administrators fill the document store, look what is in it, and search it.

What `/v1/documents` takes: exact models, from which its part of the OpenAPI document is made too.

`/v1/documents` in the OpenAPI document.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import Annotated, Any

import orjson
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response

from coe.errors import (
    BodyTooLarge,
    ConfigError,
    DocumentNotFound,
    DocumentsConflict,
    DocumentsUnavailable,
    Draining,
    Overloaded,
    RequestError,
    RetrievalError,
)
from coe.retrieval.ingest.chunking import clean
from coe.retrieval.ingest.indexing import Indexer, Text
from coe.retrieval.passages import MOST_PASSAGES, Key
from coe.runtime.document_index import DocumentIndex
from gateway.errors import body_of, headers_of, status_of
from gateway.request.cancellation import ClientLeftError
from gateway.request.validation import arrived, checked
from gateway.serving_state import ServingState

COLLECTION = "documents"
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
PRINTABLE = r"^[^\x00-\x1f\x7f]*$"
NO_NUL = r"^[^\x00]*$"
MOST_DOCUMENTS = 100
LONGEST_ID = 512
LONGEST_QUERY = 8_000

_Name = Annotated[str, Field(pattern=NAME)]
_Id = Annotated[str, Field(min_length=1, max_length=LONGEST_ID, pattern=PRINTABLE)]
_Line = Annotated[str, Field(max_length=LONGEST_ID, pattern=PRINTABLE)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class DocumentUpload(_Body):
    """One document; it takes the place of the one with its id in the same collection of the same tenant."""

    id: _Id
    text: Annotated[str, Field(min_length=1, pattern=NO_NUL)]
    """Plain text or Markdown."""
    title: _Line = ""
    source: _Line | None = None
    """Where it is from, as answers will name it; left out, its id."""


class Upload(_Body):
    """Documents for one collection."""

    documents: Annotated[list[DocumentUpload], Field(min_length=1, max_length=MOST_DOCUMENTS)]
    collection: _Name = COLLECTION
    tenant: _Name | None = None
    """Whose they are; left out: everybody's."""


class Question(_Body):
    """What to search for."""

    query: Annotated[str, Field(min_length=1, max_length=LONGEST_QUERY)]
    collections: Annotated[list[_Name], Field(max_length=100)] = []
    """Those to look in; all when empty."""
    tenant: _Name | None = None
    """Sees its own documents and everybody's."""
    limit: Annotated[int, Field(ge=1, le=MOST_PASSAGES)] = 5


class DocumentLocation(_Body):
    """Where a document is."""

    collection: _Name = COLLECTION
    tenant: _Name | None = None


class Page(_Body):
    """Which documents to list; without a collection the collections themselves."""

    collection: _Name | None = None
    tenant: _Name | None = None
    after: _Line = ""
    limit: Annotated[int, Field(ge=1, le=1000)] = 100


MAX_BODY = 4 * 2**20
SECONDS = 300.0
"""For a whole request; what a cut-off upload wrote stays, and sending it again finishes it."""
AT_ONCE = 8
"""Requests at a time; uploads among them are embedded one by one."""
RETRY_AFTER = 5.0
_log = logging.getLogger("gateway")

Work = Callable[[Request, DocumentIndex], Awaitable[Any]]


class Documents:
    """The endpoints over the index that is served with now."""

    def __init__(self, current: ServingState) -> None:
        self._current = current
        self._under_way = 0
        self._writing = asyncio.Lock()

    async def all(self, request: Request) -> Response:
        """`GET` and `POST /v1/documents`."""
        return await self._answer(request, self._upload if request.method == "POST" else self._list)

    async def one(self, request: Request) -> Response:
        """`DELETE /v1/documents/{id}`."""
        return await self._answer(request, self._delete)

    async def search(self, request: Request) -> Response:
        """`POST /v1/documents/search`."""
        return await self._answer(request, self._search)

    async def _answer(self, request: Request, work: Work) -> Response:
        try:
            self._current.serving.access.identify(request.scope["headers"], "admin")
            index = self._current.serving.index
            if index is None:
                raise DocumentNotFound("no document store is declared (retrieval.store in experts.yaml)")
            with self._place(), _telling():
                async with asyncio.timeout(SECONDS):
                    answer = await work(request, index)
        except RequestError as error:
            response = Response(body_of(error), status_code=status_of(error), media_type="application/json")
            response.raw_headers += headers_of(error)
            return response
        except ClientLeftError:
            return Response(status_code=400)
        return Response(orjson.dumps(answer), media_type="application/json")

    @contextmanager
    def _place(self) -> Iterator[None]:
        if self._current.admission.closed:
            raise Draining("this gateway is about to end; send it again", retry_after=RETRY_AFTER)
        if self._under_way >= AT_ONCE:
            raise Overloaded(f"{AT_ONCE} other requests for documents are under way", retry_after=RETRY_AFTER)
        self._under_way += 1
        try:
            yield
        finally:
            self._under_way -= 1

    async def _upload(self, request: Request, index: DocumentIndex) -> Mapping[str, Any]:
        upload = checked(Upload, await _body(request))
        ids = [document.id for document in upload.documents]
        if twice := sorted({one for one in ids if ids.count(one) > 1}):
            raise DocumentsConflict(f"documents: the id {twice[0]!r} comes twice", param="documents")
        async with self._writing:
            tally = await Indexer(index.store, index.encoder).add(_texts(upload))
        return {"object": "documents", **asdict(tally)}

    async def _list(self, request: Request, index: DocumentIndex) -> Mapping[str, Any]:
        page = checked(Page, _query(request))
        if page.collection is None:
            there = [asdict(one) for one in await index.store.collections()]
            return {"object": "list", "data": there, "has_more": False}
        known = sorted((await index.store.digests(page.collection, page.tenant)).items())
        rest = [(name, digest) for name, digest in known if name > page.after]
        shown = [{"id": name, "digest": digest} for name, digest in rest[: page.limit]]
        return {"object": "list", "data": shown, "has_more": len(rest) > page.limit}

    async def _delete(self, request: Request, index: DocumentIndex) -> Mapping[str, Any]:
        place, name = checked(DocumentLocation, _query(request)), request.path_params["id"]
        async with self._writing:
            count = await index.store.delete([Key(name, place.collection, place.tenant)])
        if not count:
            raise DocumentNotFound(
                f"no document {name[:64]!r} in {place.collection!r} of {place.tenant or 'everybody'}"
            )
        return {"object": "document", "id": name, "deleted": True}

    async def _search(self, request: Request, index: DocumentIndex) -> Mapping[str, Any]:
        asked = checked(Question, await _body(request))
        vector = (await asyncio.to_thread(index.encoder.encode, [asked.query]))[0]
        found = await index.store.search(
            asked.query, vector, collections=asked.collections, tenant=asked.tenant, limit=asked.limit
        )
        return {"object": "list", "data": [asdict(one) for one in found]}


@contextmanager
def _telling() -> Iterator[None]:
    """What the store says, as what a client is told."""
    try:
        yield
    except (RetrievalError, ConfigError) as error:
        _log.warning("documents: %s", error)
        raise DocumentsUnavailable(str(error), retry_after=RETRY_AFTER) from error
    except TimeoutError:
        raise DocumentsUnavailable(
            f"it was not done within {SECONDS:g} s; send less at a time", retry_after=RETRY_AFTER
        ) from None


async def _body(request: Request) -> bytes | bytearray:
    try:
        return await arrived(request, limit=MAX_BODY)
    except BodyTooLarge:
        raise BodyTooLarge(f"the body is larger than the {MAX_BODY // 2**20} MiB that documents may have") from None


def _query(request: Request) -> bytes:
    return orjson.dumps(dict(request.query_params))


async def _texts(upload: Upload) -> AsyncIterator[Text]:
    for one in upload.documents:
        key = Key(one.id, upload.collection, upload.tenant)
        yield Text(key, clean(one.text), one.source if one.source is not None else one.id, one.title)


Schema = dict[str, Any]
_TEXT: Schema = {"type": "string"}
_COUNT: Schema = {"type": "integer", "minimum": 0}


def components() -> Schema:
    """Schemas of what is taken and given."""
    found: Schema = {}
    for model in (Upload, Question):
        schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
        found |= schema.pop("$defs", {})
        found[model.__name__] = schema
    counts = dict.fromkeys(("added", "changed", "unchanged", "empty", "chunks"), _COUNT)
    passage = dict.fromkeys(("id", "text", "source", "title", "collection"), _TEXT) | {"score": {"type": "number"}}
    listed = {"object": {"const": "list"}, "has_more": {"type": "boolean"}}
    return found | {
        "Uploaded": _object({"object": {"const": "documents"}, **counts}),
        "Deleted": _object({"object": {"const": "document"}, "id": _TEXT, "deleted": {"const": True}}),
        "DocumentList": _object({**listed, "data": {"type": "array", "items": {"type": "object"}}}),
        "Passages": _object({"object": {"const": "list"}, "data": {"type": "array", "items": _object(passage)}}),
    }


def parameters(*names: str) -> list[Schema]:
    """Those of the query, and the document's id in the path."""
    name: Schema = {"type": "string", "pattern": NAME}
    line: Schema = {"type": "string", "maxLength": LONGEST_ID, "pattern": PRINTABLE}
    known = {
        "collection": ("query", name),
        "tenant": ("query", name),
        "after": ("query", line),
        "limit": ("query", {"type": "integer", "minimum": 1, "maximum": 1000}),
        "id": ("path", {"type": "string", "minLength": 1}),
    }
    return [
        {"name": one, "in": known[one][0], "required": known[one][0] == "path", "schema": known[one][1]}
        for one in names
    ]


def _object(properties: Schema) -> Schema:
    return {"type": "object", "properties": properties, "required": list(properties)}
