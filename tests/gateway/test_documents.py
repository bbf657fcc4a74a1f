"""`/v1/documents`: for administrators, bounded, and clear about what is wrong."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from coe.artifacts.active_state import DocumentIndex
from coe.registry import Registry
from coe.retrieval.indexing import encoder_id
from coe.retrieval.store import DocumentStore
from gateway.endpoints.documents import MAX_BODY_BYTES
from tests.fakes import Gateway, Response, gateway_of, registry_of
from tests.retrieval.samples import WordEncoder

pytestmark = pytest.mark.anyio
JSON = {"content-type": "application/json"}
PATH = "/v1/documents"


@pytest.fixture
async def index(tmp_path: Path) -> AsyncIterator[DocumentIndex]:
    encoder = WordEncoder()
    store = DocumentStore(tmp_path / "documents", encoder_id(encoder))
    yield DocumentIndex(store, encoder)
    await store.aclose()


@pytest.fixture
async def gateway(index: DocumentIndex) -> AsyncIterator[Gateway]:
    async with gateway_of(index=index) as gateway:
        yield gateway


async def upload(gateway: Gateway, *documents: Any, path: str = PATH, **more: Any) -> Response:
    return await gateway.post(path, orjson.dumps({"documents": documents, **more}))


async def search(gateway: Gateway, query: str, **more: Any) -> list[dict[str, Any]]:
    answer = await gateway.post(f"{PATH}/search", orjson.dumps({"query": query, **more}))
    assert answer.status == 200, answer.json
    found: list[dict[str, Any]] = answer.json["data"]
    return found


LEAVE = {"id": "hr/leave", "text": "Parental leave lasts sixteen weeks.", "title": "Leave"}
TRAINS = {"id": "trains", "text": "Book trains before planes.", "source": "https://example.org/trains"}


async def test_documents_are_added_searched_listed_and_deleted(gateway: Gateway) -> None:
    added = {"object": "documents", "added": 2, "changed": 0, "unchanged": 0, "empty": 0, "chunks": 2}
    assert (await upload(gateway, LEAVE, TRAINS)).json == added
    again = (await upload(gateway, LEAVE, TRAINS | {"text": "Book trains."}, {"id": "blank", "text": " "})).json
    assert (again["unchanged"], again["changed"], again["empty"]) == (1, 1, 1)
    best, other = await search(gateway, "how long is parental leave")
    assert (best["source"], best["title"], best["collection"]) == ("hr/leave", "Leave", "documents")
    assert other["source"] == "https://example.org/trains"
    listed = (await gateway.post(PATH, method="GET")).json
    assert listed["data"] == [{"name": "documents", "tenant": None, "documents": 2, "chunks": 2}]
    page = (await gateway.post(PATH, method="GET", query="collection=documents&limit=1")).json
    assert ([one["id"] for one in page["data"]], page["has_more"]) == (["hr/leave"], True)
    page = (await gateway.post(PATH, method="GET", query="collection=documents&after=hr/leave")).json
    assert ([one["id"] for one in page["data"]], page["has_more"]) == (["trains"], False)
    gone = await gateway.post(f"{PATH}/hr/leave", method="DELETE")
    assert gone.json == {"object": "document", "id": "hr/leave", "deleted": True}
    assert (await gateway.post(f"{PATH}/hr/leave", method="DELETE")).error["code"] == "document_not_found"
    assert len(await search(gateway, "leave")) == 1


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b"{", ""),
        (b"[]", ""),
        (b'{"documents": []}', "documents"),
        (b'{"documents": [{"id": "a"}]}', "documents.0.text"),
        (b'{"documents": [{"id": "a\\u0000", "text": "x"}]}', "documents.0.id"),
        (b'{"documents": [{"id": "a", "text": "x\\u0000"}]}', "documents.0.text"),
        (b'{"documents": [{"id": "", "text": "x"}]}', "documents.0.id"),
        (b'{"documents": [{"id": "a", "text": "x", "tags": 1}]}', "documents.0.tags"),
        (b'{"documents": [{"id": "a", "text": "x"}], "tenant": "a b"}', "tenant"),
        (orjson.dumps({"documents": [LEAVE] * 101}), "documents"),
    ],
)
async def test_a_wrong_upload_is_refused_by_field(gateway: Gateway, body: bytes, field: str) -> None:
    answer = await gateway.post(PATH, body)
    assert answer.status == 400
    assert (answer.error["param"] or "") == field


async def test_a_repeated_id_and_a_body_that_is_too_large_are_refused(gateway: Gateway) -> None:
    assert (await upload(gateway, LEAVE, LEAVE)).error["code"] == "duplicate_id"
    large = await upload(gateway, LEAVE | {"text": "x" * MAX_BODY_BYTES})
    assert (large.status, large.error["code"]) == (413, "body_too_large")
    assert "4 MiB" in large.error["message"]


async def test_without_a_store_the_error_names_the_remedy() -> None:
    async with gateway_of() as gateway:
        answer = await upload(gateway, LEAVE)
    assert answer.status == 404
    assert "retrieval.store" in answer.error["message"]


async def test_only_administrators_may(index: DocumentIndex) -> None:
    async with gateway_of(registry_with_key("a"), index=index) as gateway:
        for path, method in ((PATH, "GET"), (PATH, "POST"), (f"{PATH}/search", "POST"), (f"{PATH}/x", "DELETE")):
            assert (await gateway.post(path, b"{}", method=method, headers=JSON)).status == 401
            known = JSON | {"authorization": "Bearer a"}
            assert (await gateway.post(path, b"{}", method=method, headers=known)).status == 403


def registry_with_key(key: str) -> Registry:
    digest = hashlib.sha256(key.encode()).hexdigest()
    return registry_of(access={"keys": [{"name": "user", "sha256": digest}]})
