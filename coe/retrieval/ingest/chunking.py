"""Split documents into chunks that the encoder reads whole.

Chunks end between sentences and overlap: each begins with the last sentences of the one before. A sentence that is
longer than a chunk is split between lines, and a longer line between words. Sentence boundaries work for all scripts.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
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
_CHUNKING_VERSION = "1"
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


def lines(text: str, span: Span) -> Iterator[Span]:
    """Yield the lines of a part of `text`, each with its line end."""
    start, end = span
    while start < end:
        stop = text.find("\n", start, end) + 1 or end
        yield start, stop
        start = stop


class Tokenizer(Protocol):
    """Returns the spans of a text's tokens in characters, without special tokens."""

    def spans(self, texts: Sequence[str]) -> list[list[Span]]: ...


@dataclass(frozen=True, slots=True)
class ChunkSize:
    """Maximum tokens of a chunk, and of its overlap with the one before."""

    tokens: int = 192
    overlap: int = 48


class Chunker:
    """Splits texts into documents of chunks. The same text gives the same chunks with the same ids."""

    def __init__(self, tokenizer: Tokenizer, size: ChunkSize = ChunkSize()) -> None:
        self._tokenizer = tokenizer
        self._size = size

    def digest(self, text: str, *, source: str, title: str) -> str:
        """Return the digest of the document that `document` would create."""
        parts = (_CHUNKING_VERSION, str(self._size.tokens), str(self._size.overlap), source, title, text)
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
            if segments and total + tokens > self._size.tokens:
                yield segments[0][0][0], segments[-1][0][1]
                segments = self._overlap(segments, room=self._size.tokens - tokens)
                total = sum(count for _, count in segments)
            segments.append((span, tokens))
            total += tokens
        if segments:
            yield segments[0][0][0], segments[-1][0][1]

    def _overlap(self, segments: list[tuple[Span, int]], *, room: int) -> list[tuple[Span, int]]:
        """Return the last segments of a chunk that the next one repeats; never all of them."""
        room = min(room, self._size.overlap)
        first = len(segments)
        while first > 1 and (room := room - segments[first - 1][1]) >= 0:
            first -= 1
        return segments[first:]

    def _segments(self, text: str) -> Iterator[tuple[Span, int]]:
        """Yield sentences with their token counts; of a sentence longer than a chunk, its lines or parts of lines."""
        for span, tokens in self._tokenize(text, sentences(text)):
            if len(tokens) <= self._size.tokens:
                yield span, len(tokens)
                continue
            for line, line_tokens in self._tokenize(text, lines(text, span)):
                yield from self._split_line(line, line_tokens)

    def _split_line(self, span: Span, tokens: list[Span]) -> Iterator[tuple[Span, int]]:
        """Yield a line whole, or if it is longer than a chunk, in parts of the overlap's size, between words if
        possible."""
        if len(tokens) <= self._size.tokens:
            yield span, len(tokens)
            return
        start, size, first = span[0], self._size.overlap or self._size.tokens, 0
        while len(tokens) - first > size:
            last = first + size
            word_ends = (at for at in range(last, first, -1) if tokens[at - 1][1] < tokens[at][0])
            last = next(word_ends, last)
            yield (start, tokens[last][0]), last - first
            start, first = tokens[last][0], last
        yield (start, span[1]), len(tokens) - first

    def _tokenize(self, text: str, spans: Iterator[Span]) -> Iterator[tuple[Span, list[Span]]]:
        """Yield spans with the spans of their tokens, both in characters of `text`."""
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
