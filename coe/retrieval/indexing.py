"""Indexes documents: finds files, converts them to text, splits it into chunks, embeds and writes them.

`find_files` follows no links. Text and Markdown are converted in this process, HTML and PDF in a sandboxed child. It
has limits for memory, CPU and wall-clock time, cannot write files, start processes or gain privileges, and has an empty
environment. It can still read what the user may read, and use the network: convert documents from untrusted people in a
virtual machine. Unchanged documents are skipped by digest.

The encoder reads a chunk whole. Chunks end between sentences and overlap: each begins with the last sentences of the
one before. A sentence that is longer than a chunk is split between lines or words. Sentence boundaries work for all
scripts.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import importlib.util
import os
import re
import signal
import sys
import unicodedata
from collections.abc import AsyncIterable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import orjson
from numpy.typing import NDArray

from coe.core import Encoder
from coe.errors import ConfigError, DataError, DocumentError, pip_install
from coe.retrieval import converter
from coe.retrieval.insertion import Chunk, Document, DocumentKey, EncoderId
from coe.retrieval.store import DocumentStore

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


FORMAT_BY_SUFFIX: dict[str, Literal["text", "markdown", "html", "pdf"]] = {
    ".txt": "text",
    ".text": "text",
    ".rst": "text",
    ".md": "markdown",
    ".markdown": "markdown",
    ".html": "html",
    ".htm": "html",
    ".xhtml": "html",
    ".pdf": "pdf",
}
MAX_FILE_BYTES = 100 * 2**20
MAX_OUTPUT_BYTES = 16 * converter.MAX_CHARACTERS
MAX_SECONDS = 120.0
"""Wall-clock time for one file. Its CPU time is limited by `converter.CPU_SECONDS`."""


@dataclass(frozen=True, slots=True)
class ConvertedText:
    """Text of a file, and its title (empty if unknown)."""

    text: str = field(repr=False)
    title: str


async def convert(file: Path, *, max_seconds: float = MAX_SECONDS) -> ConvertedText:
    """Return the normalized text of a file. Raises DocumentError with the reason, without the file's name."""
    try:
        size = (await asyncio.to_thread(file.stat)).st_size
        file_format = FORMAT_BY_SUFFIX[file.suffix.lower()]
        if size > MAX_FILE_BYTES:
            raise DocumentError(f"it is larger than {MAX_FILE_BYTES // 2**20} MiB ({size / 2**20:,.0f} MiB); split it")
        if file_format in ("text", "markdown"):
            data = await asyncio.to_thread(file.read_bytes)
            return _decode(data, has_headings=file_format == "markdown")
    except OSError as error:
        raise DocumentError(f"it cannot be read: {error.strerror}") from None
    response = orjson.loads(await _run_converter(file, file_format, max_seconds=max_seconds))
    if "error" in response:
        raise DocumentError(response["error"])
    return ConvertedText(normalize_text(response["text"]), normalize_text(response["title"]))


def _decode(data: bytes, *, has_headings: bool) -> ConvertedText:
    """Return UTF-8 text; with headings, the first one of level 1 is its title."""
    if b"\x00" in data:
        raise DocumentError("it holds NUL bytes, so it is not text in UTF-8")
    try:
        text = normalize_text(data.decode())
    except UnicodeDecodeError as error:
        raise DocumentError(f"it is not UTF-8 (byte {error.start}); convert it: iconv -t utf-8") from None
    if len(text) > converter.MAX_CHARACTERS:
        raise DocumentError(f"its text is longer than {converter.MAX_CHARACTERS:,} characters; split it")
    headings = (line for line in text.splitlines() if has_headings and line.startswith("# "))
    return ConvertedText(text, next(headings, "")[2:].strip(" #")[: converter.MAX_TITLE_CHARACTERS])


async def _run_converter(file: Path, file_format: str, *, max_seconds: float) -> bytes:
    """Return the output of a child process that converts the file."""
    for module in ("pypdf", "markdownify"):
        if importlib.util.find_spec(module) is None:
            raise ConfigError(f"{module} is not installed; install it: {pip_install('documents')}")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-I", converter.__file__, str(file), file_format),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env={},
        start_new_session=True,
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(max_seconds):
            await process.stdout.readexactly(MAX_OUTPUT_BYTES)
        raise DocumentError("its conversion gave an invalid result")
    except asyncio.IncompleteReadError as end:
        if (code := await process.wait()) == 0:
            return end.partial
    except TimeoutError:
        raise DocumentError(f"converting it took longer than {max_seconds:g} s; split it") from None
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.communicate()  # closes its pipes
    if code == -signal.SIGXCPU:
        raise DocumentError(f"converting it took more than {converter.CPU_SECONDS} s of processor time; split it")
    raise DocumentError(f"converting it broke the converter ({f'signal {-code}' if code < 0 else f'exit {code}'})")


def find_files(paths: Sequence[str]) -> dict[Path, str]:
    """Return the resolved files of files and folders, in order, each with the reason why it is refused, empty if none.

    Folders give files of known formats only; hidden files and links are skipped in folders. Raises DataError for a path
    that does not exist.
    """
    found: dict[Path, str] = {}
    for path in map(Path, paths):
        if not os.path.lexists(path):
            raise DataError(f"{path}: there is no such file or folder")
        for file in _files_in(path) if path.is_dir() else (path,):
            reason = ""
            if file.is_symlink():
                reason = "it is a link; name what it points to"
            elif not file.is_file():
                reason = "not a file"
            elif file.suffix.lower() not in FORMAT_BY_SUFFIX:
                reason = f"not a kind of file that is read ({' '.join(FORMAT_BY_SUFFIX)})"
            found.setdefault(file.absolute() if reason else file.resolve(), reason)
    return dict(sorted(found.items()))


def _files_in(root: Path) -> Iterator[Path]:
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        files = (Path(folder, name) for name in sorted(names) if not name.startswith("."))
        yield from (file for file in files if file.suffix.lower() in FORMAT_BY_SUFFIX and not file.is_symlink())


WRITE_BATCH_CHUNKS = 256
"""Chunks in one write, or a few more: the chunks of a document are written together."""
EMBEDDED_AT_ONCE = 4096
"""Chunks that the encoder gets at once, which bounds its memory."""
EMBEDDED_TITLE_CHARACTERS = 100
"""Characters of its document's title that each chunk is embedded with."""


class TokenizingEncoder(Encoder, Tokenizer, Protocol):
    """An encoder that also returns token spans. `digest` identifies it."""

    digest: str


@dataclass(frozen=True, slots=True)
class SourceText:
    """A document before chunking."""

    key: DocumentKey
    text: str = field(repr=False)
    source: str
    title: str = ""


@dataclass(slots=True)
class IndexingCounts:
    """Counts of documents by outcome. `empty` ones are blank and not stored; `chunks` are those written."""

    added: int = 0
    changed: int = 0
    unchanged: int = 0
    empty: int = 0
    chunks: int = 0


class Indexer:
    """Fills a store that was opened for `encoder`, which runs in a thread."""

    def __init__(self, store: DocumentStore, encoder: TokenizingEncoder) -> None:
        self._store, self._encoder, self._chunker = store, encoder, Chunker(encoder)

    async def add(
        self, texts: AsyncIterable[SourceText], *, progress: Callable[[int], None] | None = None
    ) -> IndexingCounts:
        """Write new and changed documents. `progress` is called with the number of texts done. Raises
        RetrievalError."""
        counts = IndexingCounts()
        digests: dict[tuple[str, str | None], dict[str, str]] = {}
        batch: dict[DocumentKey, Document] = {}
        done = 0
        async for text in texts:
            done += 1
            part = (text.key.collection, text.key.tenant)
            if part not in digests:
                digests[part] = dict(await self._store.digests(*part))
            if document := await self._document(text, digests[part], counts):
                batch[text.key] = document
            if sum(len(one.chunks) for one in batch.values()) >= WRITE_BATCH_CHUNKS:
                await self._write([*batch.values()])
                batch = {}
            if progress:
                progress(done)
        await self._write([*batch.values()])
        return counts

    async def rebuild(self) -> int:
        """Embed all stored documents again, and return their number. Raises RetrievalError."""
        return await self._store.rebuild(self._embed)

    async def _document(self, text: SourceText, digests: dict[str, str], counts: IndexingCounts) -> Document | None:
        """Return the document to write, None if it is unchanged or empty. Deletes one that became empty."""
        digest = self._chunker.digest(text.text, source=text.source, title=text.title)
        before = digests.get(text.key.id)
        if before == digest:
            counts.unchanged += 1
            return None
        document = await asyncio.to_thread(
            self._chunker.document, text.key, text.text, source=text.source, title=text.title
        )
        if not document.chunks:
            counts.empty += 1
            if before is not None:
                await self._store.delete([text.key])
            return None
        digests[text.key.id] = digest
        counts.added += before is None
        counts.changed += before is not None
        counts.chunks += len(document.chunks)
        return document

    async def _write(self, batch: Sequence[Document]) -> None:
        if batch:
            chunks = [(document.title, chunk.text) for document in batch for chunk in document.chunks]
            titles, texts = map(list, zip(*chunks, strict=True))
            await self._store.upsert(batch, await asyncio.to_thread(self._embed, titles, texts))

    def _embed(self, titles: list[str], texts: list[str]) -> NDArray[np.float32]:
        titled = [
            f"{title[:EMBEDDED_TITLE_CHARACTERS]}\n{text}" if title else text
            for title, text in zip(titles, texts, strict=True)
        ]
        parts = (titled[start : start + EMBEDDED_AT_ONCE] for start in range(0, len(titled), EMBEDDED_AT_ONCE))
        return np.concatenate([self._encoder.encode(part) for part in parts])


def encoder_id(encoder: TokenizingEncoder) -> EncoderId:
    """Return the id of an encoder that an index stores."""
    return EncoderId(encoder.digest, encoder.dimensions)
