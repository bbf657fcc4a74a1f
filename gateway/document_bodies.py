"""What `/v1/documents` takes: exact models, from which its part of the OpenAPI document is made too."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from coe.retrieval.passages import MOST_PASSAGES

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


class Place(_Body):
    """Where a document is."""

    collection: _Name = COLLECTION
    tenant: _Name | None = None


class Page(_Body):
    """Which documents to list; without a collection the collections themselves."""

    collection: _Name | None = None
    tenant: _Name | None = None
    after: _Line = ""
    limit: Annotated[int, Field(ge=1, le=1000)] = 100
