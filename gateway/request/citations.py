"""Adds citations of retrieved passages to an answer, as OpenAI's APIs write them: annotations.

`cited` rewrites the chunks of an answer of the Chat Completions or Responses API. Each mention such as [1] gets an
annotation; a source without a mention gets one at the end of the text. A chat stream announces its sources in one chunk
at the beginning, because the positions of mentions are not known yet. A Responses stream has them in its last event,
which repeats the answer. An answer in an unexpected form passes through unchanged.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from functools import partial
from itertools import islice
from typing import Any

import orjson

from coe.core import Api, Chunks
from coe.experts.http import sse
from coe.experts.http.sse import EVENT_STREAM
from coe.retrieval.passages import Passage

JsonObject = dict[str, Any]
Passages = Sequence[Passage]
"""The passages that the expert was given, in the order of their numbers."""
MAX_MENTIONS = 1_000
"""Mentions of one text that get an annotation, which is a hundred times as long."""
_MENTION = re.compile(r"\[(\d{1,2})\]")
_MALFORMED = (ValueError, TypeError, KeyError, AttributeError, LookupError)
"""Errors of reading an answer that does not have its API's form."""
_LAST_EVENT = sse.EventTypes("response.completed", "response.incomplete")
_DATA = re.compile(rb"^data:(.*?)\r?$", re.MULTILINE)


async def cited(chunks: Chunks, passages: Passages, api: Api, *, media_type: str) -> AsyncGenerator[bytes, None]:
    """The chunks of an answer with citations of the passages, if the API has a place for them."""
    streams, is_first = media_type == EVENT_STREAM, True
    async with aclosing(chunks):
        async for chunk in chunks:
            try:
                if api == "chat" and streams:
                    chunk = _sources_event(chunk, passages) + chunk if is_first else chunk
                elif api == "responses" and streams:
                    chunk = _DATA.sub(partial(_cite_event, passages=passages), chunk)
                elif api in ("chat", "responses"):
                    answer = orjson.loads(chunk)
                    (_cite_chat if api == "chat" else _cite_response)(answer, passages)
                    chunk = orjson.dumps(answer)
            except _MALFORMED:
                pass
            is_first = False
            yield chunk


def annotations_of(text: str, passages: Passages, *, flat: bool = False) -> list[JsonObject]:
    """The annotations of a text in the form of Chat Completions, or with `flat` in that of Responses."""
    mentions: dict[int, list[tuple[int, int]]] = {}
    for mention in islice(_MENTION.finditer(text), MAX_MENTIONS):
        mentions.setdefault(int(mention[1]), []).append(mention.span())
    return [
        _annotation(passage, span, flat=flat)
        for number, passage in enumerate(passages, 1)
        for span in mentions.get(number, [(len(text), len(text))])
    ]


def _annotation(passage: Passage, span: tuple[int, int], *, flat: bool) -> JsonObject:
    """A citation of a page by its address, or of a file by the passage's id and name."""
    title, source = passage.title or passage.source, passage.source
    kind, inner = "url_citation", {"url": source, "title": title, "start_index": span[0], "end_index": span[1]}
    if not source.startswith(("http://", "https://")):
        kind, inner = "file_citation", {"file_id": passage.id, "filename": title}
        inner |= {"index": span[1]} if flat else {"start_index": span[0], "end_index": span[1]}
    return {"type": kind, **inner} if flat else {"type": kind, kind: inner}


def _sources_event(chunk: bytes, passages: Passages) -> bytes:
    """The event that names the sources, with the id of the `chunk` that follows it."""
    event = sse.first_event(chunk.lstrip(b"\r\n"))
    head = {name: event[name] for name in ("id", "created", "model") if name in event}
    delta = {"role": "assistant", "content": "", "annotations": annotations_of("", passages)}
    choice = {"index": 0, "delta": delta, "finish_reason": None}
    return b"data: %b\n\n" % orjson.dumps({**head, "object": "chat.completion.chunk", "choices": [choice]})


def _cite_event(data: re.Match[bytes], passages: Passages) -> bytes:
    """A line of data with the citations, if it is the last event's."""
    for event in _LAST_EVENT.find(data[0]):
        _cite_response(event["response"], passages)
        return b"data: %b" % orjson.dumps(event)
    return data[0]


def _cite(part: JsonObject, text: str, passages: Passages, *, flat: bool) -> None:
    part["annotations"] = [*(part.get("annotations") or []), *annotations_of(text, passages, flat=flat)]


def _cite_chat(answer: JsonObject, passages: Passages) -> None:
    for choice in answer["choices"]:
        _cite(choice["message"], choice["message"].get("content") or "", passages, flat=False)


def _cite_response(answer: JsonObject, passages: Passages) -> None:
    for item in answer["output"]:
        for part in item.get("content") or []:
            if part.get("type") == "output_text":
                _cite(part, part["text"], passages, flat=True)
