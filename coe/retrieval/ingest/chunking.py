"""A text cut into chunks that the encoder reads whole: between sentences, each beginning with the former's end.

Where sentences end, in every script; a blank line always ends one.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from coe.retrieval.passages import Chunk, Document, Key

Span = tuple[int, int]
"""Start and end in characters; the white space after a sentence belongs to it."""
LONGEST = 20_000
"""Characters of a paragraph that are looked at together."""
_PARAGRAPH = re.compile(r".*?(?:\n[ \t]*\n\s*|\Z)", re.DOTALL)


def sentences(text: str) -> Iterator[Span]:
    """The sentences of `text` in order; together they are all of it. Abbreviations are known in English."""
    from sentencex import segment

    for paragraph in _PARAGRAPH.finditer(text):
        for start in range(*paragraph.span(), LONGEST):
            end = min(start + LONGEST, paragraph.end())
            at = start
            for sentence in segment("en", text[start:end]):
                yield at, min(at + len(sentence), end)
                at += len(sentence)
            if at < end:
                yield at, end


def lines(text: str, span: Span) -> Iterator[Span]:
    """The lines of a part of `text`, each with the break after it."""
    start, end = span
    while start < end:
        stop = text.find("\n", start, end) + 1 or end
        yield start, stop
        start = stop


_FORMAT = "1"
"""Part of every digest: raised when texts are cut in another way."""
LONG_TOKEN = 16
"""Characters that count as a token at most: tokenizers make one of any row of characters that they do not know."""
_TOGETHER = 512
"""Sentences that are tokenized at a time."""


class Tokenizer(Protocol):
    """Where a text's tokens begin and end, in characters; special tokens left out."""

    def spans(self, texts: Sequence[str]) -> list[list[Span]]: ...


@dataclass(frozen=True, slots=True)
class Cut:
    """How long chunks are, in tokens, and how much of the former one each repeats at most."""

    tokens: int = 192
    overlap: int = 48


class Chunker:
    """Texts to documents in chunks. The same text gives the same chunks with the same ids."""

    def __init__(self, tokenizer: Tokenizer, cut: Cut = Cut()) -> None:
        self._tokenizer = tokenizer
        self._cut = cut

    def digest(self, text: str, *, source: str, title: str) -> str:
        """Of what `document` would make of the same."""
        parts = (_FORMAT, str(self._cut.tokens), str(self._cut.overlap), source, title, text)
        return _hash(*parts)

    def document(self, key: Key, text: str, *, source: str, title: str) -> Document:
        """A document without chunks where `text` holds nothing but white space."""
        met: dict[str, int] = {}
        chunks = []
        for start, end in self._spans(text):
            piece = text[start:end].strip()
            if not piece:
                continue
            number = met[piece] = met.get(piece, -1) + 1
            chunks.append(Chunk(_hash(key.tenant or "", key.collection, key.id, piece, str(number))[:24], piece))
        return Document(key, source, title, self.digest(text, source=source, title=title), tuple(chunks))

    def _spans(self, text: str) -> Iterator[Span]:
        """Chunks as spans: sentences are gathered until the next would be too much."""
        held: list[tuple[Span, int]] = []
        total = 0
        for span, tokens in self._pieces(text):
            if held and total + tokens > self._cut.tokens:
                yield held[0][0][0], held[-1][0][1]
                held = self._repeated(held, room=self._cut.tokens - tokens)
                total = sum(count for _, count in held)
            held.append((span, tokens))
            total += tokens
        if held:
            yield held[0][0][0], held[-1][0][1]

    def _repeated(self, held: list[tuple[Span, int]], *, room: int) -> list[tuple[Span, int]]:
        """The last sentences of a chunk, as many as the next begins with; never all of it."""
        room = min(room, self._cut.overlap)
        first = len(held)
        while first > 1 and (room := room - held[first - 1][1]) >= 0:
            first -= 1
        return held[first:]

    def _pieces(self, text: str) -> Iterator[tuple[Span, int]]:
        """Sentences with their tokens; where one is longer than a chunk, its lines, and parts of too long a line."""
        for span, tokens in self._counted(text, sentences(text)):
            if len(tokens) <= self._cut.tokens:
                yield span, len(tokens)
                continue
            for line, inside in self._counted(text, lines(text, span)):
                yield from self._parts(line, inside)

    def _parts(self, span: Span, tokens: list[Span]) -> Iterator[tuple[Span, int]]:
        """A line whole, or where it is too long in parts that an overlap has room for, between words where it can."""
        if len(tokens) <= self._cut.tokens:
            yield span, len(tokens)
            return
        start, size, first = span[0], self._cut.overlap or self._cut.tokens, 0
        while len(tokens) - first > size:
            last = first + size
            words = (at for at in range(last, first, -1) if tokens[at - 1][1] < tokens[at][0])
            last = next(words, last)
            yield (start, tokens[last][0]), last - first
            start, first = tokens[last][0], last
        yield (start, span[1]), len(tokens) - first

    def _counted(self, text: str, spans: Iterator[Span]) -> Iterator[tuple[Span, list[Span]]]:
        """Spans with those of their tokens, in characters of `text`."""
        for group in _grouped(spans):
            found = self._tokenizer.spans([text[start:end] for start, end in group])
            for (start, end), tokens in zip(group, found, strict=True):
                yield (start, end), [(start + a, start + b) for token in tokens for a, b in _short(token)]


def _short(token: Span) -> Iterator[Span]:
    """A token; or, of one that stands for a long row of characters without a space, several."""
    start, end = token
    while end - start > LONG_TOKEN:
        yield start, start + LONG_TOKEN
        start += LONG_TOKEN
    yield start, end


def _grouped(spans: Iterator[Span]) -> Iterator[list[Span]]:
    group: list[Span] = []
    for span in spans:
        group.append(span)
        if len(group) == _TOGETHER:
            yield group
            group = []
    if group:
        yield group


def clean(text: str) -> str:
    """`text` as it is kept: composed, its line ends \\n, without control characters and lone surrogates."""
    text = unicodedata.normalize("NFC", text.encode("utf-8", "replace").decode())
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\f", "\n\n")
    return text.translate(_CONTROLS)


_CONTROLS = dict.fromkeys((*(set(range(32)) - {9, 10}), *range(127, 160), 0xFEFF))


def _hash(*parts: str) -> str:
    whole = hashlib.blake2b(digest_size=16)
    for part in parts:
        data = part.encode()
        whole.update(len(data).to_bytes(8, "big") + data)
    return whole.hexdigest()
