"""Adds citations of retrieved passages to an answer of the Chat Completions API, as OpenAI writes them: annotations.

Each mention such as [1] gets an annotation; a source without a mention gets one at the end of the text. A stream
announces its sources in one chunk at the beginning, because the positions of mentions are not known yet. An answer in
an unexpected form passes through unchanged.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, suppress
from itertools import islice
from typing import Any

import orjson

from coe.core import Chunks
from coe.experts.http import sse
from coe.retrieval.passages import Passage

MAX_MENTIONS = 1_000
"""Mentions of one text that get an annotation, which is a hundred times as long."""
_MENTION = re.compile(r"\[(\d{1,2})\]")
_MALFORMED = (ValueError, TypeError, KeyError, AttributeError, LookupError)
"""Errors of reading an answer that does not have the API's form."""


async def cited(chunks: Chunks, passages: Sequence[Passage], *, media_type: str) -> AsyncGenerator[bytes, None]:
    """The chunks of an answer with citations of the passages, which are in the order of their numbers."""
    cite = _add_sources if media_type == sse.EVENT_STREAM else _add_annotations
    is_first = True
    async with aclosing(chunks):
        async for chunk in chunks:
            if is_first:  # an answer that is no stream has one chunk
                with suppress(*_MALFORMED):
                    chunk = cite(chunk, passages)
                is_first = False
            yield chunk


def _add_annotations(chunk: bytes, passages: Sequence[Passage]) -> bytes:
    answer = orjson.loads(chunk)
    for choice in answer["choices"]:
        message = choice["message"]
        own = message.get("annotations") or []
        message["annotations"] = [*own, *annotations_of(message.get("content") or "", passages)]
    return orjson.dumps(answer)


def _add_sources(chunk: bytes, passages: Sequence[Passage]) -> bytes:
    """The chunk after an event that names the sources, with the same id."""
    event = sse.first_event(chunk.lstrip(b"\r\n"))
    head = {name: event[name] for name in ("id", "created", "model") if name in event}
    delta = {"role": "assistant", "content": "", "annotations": annotations_of("", passages)}
    choice = {"index": 0, "delta": delta, "finish_reason": None}
    sources = orjson.dumps({**head, "object": "chat.completion.chunk", "choices": [choice]})
    return b"data: %b\n\n%b" % (sources, chunk)


def annotations_of(text: str, passages: Sequence[Passage]) -> list[dict[str, Any]]:
    """Citations of pages by their address, and of files by the passage's id and name."""
    mentions: dict[int, list[tuple[int, int]]] = {}
    for mention in islice(_MENTION.finditer(text), MAX_MENTIONS):
        mentions.setdefault(int(mention[1]), []).append(mention.span())
    annotations = []
    for number, passage in enumerate(passages, 1):
        title, kind = passage.title or passage.source, "file_citation"
        source = {"file_id": passage.id, "filename": title}
        if passage.source.startswith(("http://", "https://")):
            kind, source = "url_citation", {"url": passage.source, "title": title}
        for start, end in mentions.get(number, [(len(text), len(text))]):
            annotations.append({"type": kind, kind: source | {"start_index": start, "end_index": end}})
    return annotations
