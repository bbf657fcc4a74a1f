"""Files to text: text and Markdown here, HTML and PDF in a process that a hostile file may break without harm.

Contained: memory, processor and wall-clock time, writing files, processes, new rights; an empty environment. Not
contained: what the user may read, and the network. Documents from people you do not trust belong in a virtual machine.
"""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import importlib.util
import os
import signal
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import orjson

from coe.errors import ConfigError, DocumentError
from coe.retrieval.ingest import converter
from coe.retrieval.ingest.chunking import clean

Kind = Literal["text", "markdown", "html", "pdf"]
KINDS: dict[str, Kind] = {
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
"""What a file is, by how its name ends."""
MAX_FILE = 100 * 2**20
"""Bytes of a file."""
WALL_SECONDS = 120.0
"""For one file; its processor time is bounded by converter.CPU_SECONDS."""
FILES = 100
"""After so many files a new process takes over: libraries leak."""
_MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))


@dataclass(frozen=True, slots=True)
class Converted:
    """What a file says. `title` is empty where it tells none."""

    text: str = field(repr=False)
    title: str


class Converter:
    """Converts one file at a time, while it is entered."""

    def __init__(self, *, wall_seconds: float = WALL_SECONDS) -> None:
        self._patience = wall_seconds
        self._process: asyncio.subprocess.Process | None = None
        self._done = 0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._end()

    async def convert(self, file: Path, kind: Kind) -> Converted:
        """The file's text, cleaned. Raises DocumentError, which says why there is none and does not name the file."""
        await asyncio.to_thread(_check, file)
        if kind in ("text", "markdown"):
            return await asyncio.to_thread(_plain, file, kind)
        answer = await self._asked({"path": str(file), "kind": kind})
        if "error" in answer:
            raise DocumentError(answer["error"])
        return Converted(clean(answer["text"]), clean(answer["title"]))

    async def _asked(self, job: dict[str, str]) -> dict[str, str]:
        process = await self._running()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            async with asyncio.timeout(self._patience):
                process.stdin.write(orjson.dumps(job) + b"\n")
                await process.stdin.drain()
                size = int.from_bytes(await process.stdout.readexactly(8), "big")
                if size > 16 * converter.MOST_CHARACTERS:
                    raise DocumentError("converting it gave nonsense")
                answer: dict[str, str] = orjson.loads(await process.stdout.readexactly(size))
        except TimeoutError:
            await self._end()
            raise DocumentError(f"converting it took longer than {self._patience:g} s; split it") from None
        except (ConnectionError, asyncio.IncompleteReadError):
            raise DocumentError(_ended(await self._end())) from None
        except BaseException:  # whoever is cancelled leaves half an answer behind
            await self._end()
            raise
        self._done += 1
        return answer

    async def _running(self) -> asyncio.subprocess.Process:
        if self._process is None or self._done >= FILES:
            await self._end()
            for module in ("pypdf", "markdownify"):
                if importlib.util.find_spec(module) is None:
                    raise ConfigError(f"{module} is not installed; install it: pip install 'coe[documents]'")
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-I", converter.__file__),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
                env={},
                start_new_session=True,
            )
            self._done = 0
        return self._process

    async def _end(self) -> int:
        """Kill the process if it lives; how it ended."""
        process, self._process = self._process, None
        if process is None:
            return 0
        ended = process.returncode
        if ended is None:
            with contextlib.suppress(TimeoutError):  # it may be about to end by itself, and tell why
                async with asyncio.timeout(0.2):
                    ended = await process.wait()
        if ended is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            ended = await process.wait()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(5):
                await process.communicate()  # or its pipes stay open
        return ended


def _ended(code: int) -> str:
    if code == -signal.SIGXCPU:
        return f"converting it took more than {converter.CPU_SECONDS} s of processor time; split it"
    return f"converting it broke the converter ({f'signal {-code}' if code < 0 else f'exit {code}'})"


def _check(file: Path) -> None:
    try:
        size = file.stat().st_size
    except OSError as error:
        raise DocumentError(f"it cannot be read: {error.strerror}") from None
    if size > MAX_FILE:
        raise DocumentError(f"it is larger than {MAX_FILE // 2**20} MiB ({size / 2**20:,.0f} MiB); split it")


def _plain(file: Path, kind: Kind) -> Converted:
    try:
        data = file.read_bytes()
    except OSError as error:
        raise DocumentError(f"it cannot be read: {error.strerror}") from None
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), "utf-8")
    if encoding != "utf-16" and b"\x00" in data:
        raise DocumentError("it holds NUL bytes, so it is no text")
    try:
        text = clean(data.decode(encoding))
    except UnicodeDecodeError as error:
        raise DocumentError(f"it is not UTF-8 (byte {error.start}); convert it: iconv -t utf-8") from None
    if len(text) > converter.MOST_CHARACTERS:
        raise DocumentError(f"its text is longer than {converter.MOST_CHARACTERS:,} characters; split it")
    return Converted(text, _heading(text) if kind == "markdown" else "")


def _heading(text: str) -> str:
    """The first heading of Markdown."""
    lines = (line for line in text.splitlines() if line.startswith("# "))
    return next(lines, "")[2:].strip(" #")[: converter.LONGEST_TITLE]
