"""Split documents into chunks that the encoder reads whole.

Chunks end between sentences and overlap: each begins with the last sentences of the one before. A sentence that is
longer than a chunk is split between lines or words. Sentence boundaries work for all scripts.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Protocol

from coe.retrieval.passages import Chunk, Document, DocumentKey

Span = tuple[int, int]
"""Start and end in characters. The white space after a sentence belongs to it."""
MAX_SEGMENT_CHARACTERS = 20_000
"""Longest part of a paragraph that is segmented into sentences at once."""
MAX_TOKEN_CHARACTERS = 16
"""Longer tokens are counted as several: tokenizers return one token for any unknown row of characters."""
TOKENIZER_BATCH_SENTENCES = 512
_CHUNKING_VERSION = "2"
"""Part of every digest. Increase it if the same text is chunked differently."""
_PARAGRAPH = re.compile(r".*?(?:\n[ \t]*\n\s*|\Z)", re.DOTALL)
_CONTROLS = dict.fromkeys((*(set(range(32)) - {9, 10}), *range(127, 160), 0xFEFF))


def normalize_text(text: str) -> str:
    """Return `text` in NFC with line ends \\n, without control characters and lone surrogates."""
    text = unicodedata.normalize("NFC", text.encode("utf-8", "replace").decode())
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\f", "\n\n")
    return text.translate(_CONTROLS)


def sentences(text: str) -> Iterator[Span]:
    """Yield the sentences of `text`, which together cover it. A blank line ends a sentence. Abbreviations are known in
    English only."""
    from sentencex import segment

    for paragraph in _PARAGRAPH.finditer(text):
        for start in range(*paragraph.span(), MAX_SEGMENT_CHARACTERS):
            end = min(start + MAX_SEGMENT_CHARACTERS, paragraph.end())
            position = start
            for sentence in segment("en", text[start:end]):
                yield position, min(position + len(sentence), end)
                position += len(sentence)
            if position < end:
                yield position, end


class Tokenizer(Protocol):
    """Returns the spans of a text's tokens in characters, without special tokens."""

    def spans(self, texts: Sequence[str]) -> list[list[Span]]: ...


class Chunker:
    """Splits texts into documents of chunks. The same text gives the same chunks with the same ids.

    A chunk has at most `tokens` tokens, of which at most `overlap` repeat the chunk before.
    """

    def __init__(self, tokenizer: Tokenizer, *, tokens: int = 192, overlap: int = 48) -> None:
        self._tokenizer, self._tokens, self._overlap = tokenizer, tokens, overlap

    def digest(self, text: str, *, source: str, title: str) -> str:
        """Return the digest of the document that `document` would create."""
        parts = (_CHUNKING_VERSION, str(self._tokens), str(self._overlap), source, title, text)
        return _hash(*parts)

    def document(self, key: DocumentKey, text: str, *, source: str, title: str) -> Document:
        """Create a document. It has no chunks if `text` is blank."""
        occurrences: dict[str, int] = {}
        chunks = []
        for start, end in self._chunk_spans(text):
            content = text[start:end].strip()
            if not content:
                continue
            number = occurrences[content] = occurrences.get(content, -1) + 1
            chunk_id = _hash(key.tenant or "", key.collection, key.id, content, str(number))[:24]
            chunks.append(Chunk(chunk_id, content))
        return Document(key, source, title, self.digest(text, source=source, title=title), tuple(chunks))

    def _chunk_spans(self, text: str) -> Iterator[Span]:
        """Collect segments into chunks until the next one would exceed the size."""
        segments: list[tuple[Span, int]] = []
        total = 0
        for span, tokens in self._segments(text):
            if segments and total + tokens > self._tokens:
                yield segments[0][0][0], segments[-1][0][1]
                room, first = min(self._tokens - tokens, self._overlap), len(segments)
                while first > 1 and (room := room - segments[first - 1][1]) >= 0:
                    first -= 1
                segments = segments[first:]
                total = sum(count for _, count in segments)
            segments.append((span, tokens))
            total += tokens
        if segments:
            yield segments[0][0][0], segments[-1][0][1]

    def _segments(self, text: str) -> Iterator[tuple[Span, int]]:
        """Yield sentences with their token counts. One that is longer than a chunk comes in parts of at most the
        overlap's size, which end between lines if possible, else between words."""
        for (start, end), tokens in self._tokenize(text):
            room = self._tokens if len(tokens) <= self._tokens else self._overlap or self._tokens
            first = 0
            while len(tokens) - first > room:
                gaps = {at: text[tokens[at - 1][1] : tokens[at][0]] for at in range(first + 1, first + room + 1)}
                last = max(gaps, key=lambda at: ("\n" in gaps[at], bool(gaps[at]), at))
                yield (start, tokens[last][0]), last - first
                start, first = tokens[last][0], last
            yield (start, end), len(tokens) - first

    def _tokenize(self, text: str) -> Iterator[tuple[Span, list[Span]]]:
        """Yield sentences with the spans of their tokens, both in characters of `text`."""
        spans = sentences(text)
        while batch := list(islice(spans, TOKENIZER_BATCH_SENTENCES)):
            found = self._tokenizer.spans([text[start:end] for start, end in batch])
            for (start, end), tokens in zip(batch, found, strict=True):
                yield (start, end), [(start + a, start + b) for token in tokens for a, b in _split_token(token)]


def _split_token(token: Span) -> Iterator[Span]:
    start, end = token
    while end - start > MAX_TOKEN_CHARACTERS:
        yield start, start + MAX_TOKEN_CHARACTERS
        start += MAX_TOKEN_CHARACTERS
    yield start, end


def _hash(*parts: str) -> str:
    whole = hashlib.blake2b(digest_size=16)
    for part in parts:
        data = part.encode()
        whole.update(len(data).to_bytes(8, "big") + data)
    return whole.hexdigest()
