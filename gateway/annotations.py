"""What an answer cites, as OpenAI's APIs write it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from coe.retrieval.passages import Passage

Passages = Sequence[Passage]
"""Those that the expert was given, in the order of their numbers."""
_CITED = re.compile(r"\[(\d{1,2})\]")


def annotations_of(text: str, passages: Passages) -> list[dict[str, Any]]:
    """As Chat Completions writes them: one for each mention like [1], and one at the end for a source without any."""
    mentions: dict[int, list[tuple[int, int]]] = {}
    for found in _CITED.finditer(text):
        mentions.setdefault(int(found[1]), []).append(found.span())
    return [
        _annotation(passage, span)
        for number, passage in enumerate(passages, 1)
        for span in mentions.get(number, [(len(text), len(text))])
    ]


def _annotation(passage: Passage, span: tuple[int, int]) -> dict[str, Any]:
    """A page is cited by its address, a file by the passage's id and its name."""
    title, source = passage.title or passage.source, passage.source
    place = {"start_index": span[0], "end_index": span[1]}
    if source.startswith(("http://", "https://")):
        return {"type": "url_citation", "url_citation": {"url": source, "title": title, **place}}
    return {"type": "file_citation", "file_citation": {"file_id": passage.id, "filename": title, **place}}


def flat(annotation: dict[str, Any]) -> dict[str, Any]:
    """As the Responses API writes it, without the inner object; a file is cited at one place."""
    kind = annotation["type"]
    inner = dict(annotation[kind])
    if kind == "file_citation":
        inner = {"file_id": inner["file_id"], "filename": inner["filename"], "index": inner["end_index"]}
    return {"type": kind, **inner}
