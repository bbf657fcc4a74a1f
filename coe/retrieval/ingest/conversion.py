"""Find files to index and convert them to text: text and Markdown in this process, HTML and PDF in a sandboxed child.

`find_files` resolves links and rejects one that leaves the given folder. The child process has limits for memory, CPU
and wall-clock time, cannot write files, start processes or gain privileges, and has an empty environment. It can still
read what the user may read, and use the network: convert documents from untrusted people in a virtual machine.
"""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import glob
import importlib.util
import os
import signal
import stat
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import orjson

from coe.errors import ConfigError, DataError, DocumentError, pip_install
from coe.retrieval.ingest import converter
from coe.retrieval.ingest.chunking import normalize_text

FileFormat = Literal["text", "markdown", "html", "pdf"]
FORMAT_BY_SUFFIX: dict[str, FileFormat] = {
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
TIMEOUT_SECONDS = 120.0
"""Wall-clock time for one file. Its CPU time is limited by `converter.CPU_SECONDS`."""
FILES_PER_PROCESS = 100
"""The child process is replaced after this many files, because the libraries leak memory."""
_BYTE_ORDER_MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))


@dataclass(frozen=True, slots=True)
class ConvertedText:
    """Text of a file, and its title (empty if unknown)."""

    text: str = field(repr=False)
    title: str


class Converter:
    """Converts one file at a time. A context manager; leaving it stops the child process."""

    def __init__(self, *, timeout: float = TIMEOUT_SECONDS) -> None:
        self._timeout = timeout
        self._process: asyncio.subprocess.Process | None = None
        self._converted = 0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stop()

    async def convert(self, file: Path, file_format: FileFormat) -> ConvertedText:
        """Return the normalized text of a file. Raises DocumentError with the reason, without the file's name."""
        await asyncio.to_thread(_check_size, file)
        if file_format in ("text", "markdown"):
            return await asyncio.to_thread(_read_text, file, file_format)
        response = await self._request({"path": str(file), "kind": file_format})
        if "error" in response:
            raise DocumentError(response["error"])
        return ConvertedText(normalize_text(response["text"]), normalize_text(response["title"]))

    async def _request(self, job: dict[str, str]) -> dict[str, str]:
        process = await self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            async with asyncio.timeout(self._timeout):
                process.stdin.write(orjson.dumps(job) + b"\n")
                await process.stdin.drain()
                size = int.from_bytes(await process.stdout.readexactly(8), "big")
                if size > 16 * converter.MAX_CHARACTERS:
                    raise DocumentError("its conversion gave an invalid result")
                response: dict[str, str] = orjson.loads(await process.stdout.readexactly(size))
        except TimeoutError:
            await self._stop()
            raise DocumentError(f"converting it took longer than {self._timeout:g} s; split it") from None
        except (ConnectionError, asyncio.IncompleteReadError):
            raise DocumentError(_exit_reason(await self._stop())) from None
        except BaseException:  # a cancelled request leaves half a response in the pipe
            await self._stop()
            raise
        self._converted += 1
        return response

    async def _start(self) -> asyncio.subprocess.Process:
        """Return the child process, started if necessary."""
        if self._process is None or self._converted >= FILES_PER_PROCESS:
            await self._stop()
            for module in ("pypdf", "markdownify"):
                if importlib.util.find_spec(module) is None:
                    raise ConfigError(f"{module} is not installed; install it: {pip_install('documents')}")
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-I", converter.__file__),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
                env={},
                start_new_session=True,
            )
            self._converted = 0
        return self._process

    async def _stop(self) -> int:
        """Stop the child process, by force if necessary, and return its exit code."""
        process, self._process = self._process, None
        if process is None:
            return 0
        try:
            async with asyncio.timeout(0.2):  # it may be about to exit by itself, with an informative code
                code = await process.wait()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            code = await process.wait()
        await process.communicate()  # closes its pipes
        return code


def _exit_reason(code: int) -> str:
    if code == -signal.SIGXCPU:
        return f"converting it took more than {converter.CPU_SECONDS} s of processor time; split it"
    return f"converting it broke the converter ({f'signal {-code}' if code < 0 else f'exit {code}'})"


def _check_size(file: Path) -> None:
    try:
        size = file.stat().st_size
    except OSError as error:
        raise DocumentError(f"it cannot be read: {error.strerror}") from None
    if size > MAX_FILE_BYTES:
        raise DocumentError(f"it is larger than {MAX_FILE_BYTES // 2**20} MiB ({size / 2**20:,.0f} MiB); split it")


def _read_text(file: Path, file_format: FileFormat) -> ConvertedText:
    try:
        data = file.read_bytes()
    except OSError as error:
        raise DocumentError(f"it cannot be read: {error.strerror}") from None
    encoding = next((name for mark, name in _BYTE_ORDER_MARKS if data.startswith(mark)), "utf-8")
    if encoding != "utf-16" and b"\x00" in data:
        raise DocumentError("it holds NUL bytes, so it is not text")
    try:
        text = normalize_text(data.decode(encoding))
    except UnicodeDecodeError as error:
        raise DocumentError(f"it is not UTF-8 (byte {error.start}); convert it: iconv -t utf-8") from None
    if len(text) > converter.MAX_CHARACTERS:
        raise DocumentError(f"its text is longer than {converter.MAX_CHARACTERS:,} characters; split it")
    return ConvertedText(text, _first_heading(text) if file_format == "markdown" else "")


def _first_heading(text: str) -> str:
    """Return the first level-1 heading of Markdown."""
    headings = (line for line in text.splitlines() if line.startswith("# "))
    return next(headings, "")[2:].strip(" #")[: converter.MAX_TITLE_CHARACTERS]


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file to index, by its resolved path."""

    path: Path
    file_format: FileFormat


@dataclass(frozen=True, slots=True)
class RejectedFile:
    """A file that cannot be indexed, and the reason."""

    path: Path
    reason: str


def find_files(paths: Sequence[str]) -> list[SourceFile | RejectedFile]:
    """Return the files of paths and patterns (*, ?, **), each once, in order.

    Folders and patterns give files of known formats only; hidden files are skipped in folders, and links to folders are
    not followed. Raises DataError for a path or pattern without a file.
    """
    found: dict[Path, SourceFile | RejectedFile] = {}
    for path in paths:
        for one in _expand(path):
            found.setdefault(one.path, one)
    return [found[path] for path in sorted(found)]


def _expand(path: str) -> Iterator[SourceFile | RejectedFile]:
    location = Path(path)
    if location.is_dir():
        yield from _files_in(location)
    elif os.path.lexists(location):
        yield _check(location, root=location.parent)
    elif glob.has_magic(path):
        root = _root(path)
        matches = [Path(match) for match in glob.iglob(path, recursive=True)]  # noqa: PTH207 -- patterns may be absolute
        if not matches:
            raise DataError(f"{path}: nothing matches")
        yield from (_check(match, root=root) for match in matches if _has_known_format(match))
    else:
        raise DataError(f"{path}: there is no such file or folder")


def _root(pattern: str) -> Path:
    """Return the folder before the first wildcard."""
    parts = Path(pattern).parts
    fixed = next(number for number, part in enumerate(parts) if glob.has_magic(part))
    return Path(*parts[:fixed])


def _files_in(root: Path) -> Iterator[SourceFile | RejectedFile]:
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        files = (Path(folder, name) for name in sorted(names) if not name.startswith("."))
        yield from (_check(file, root=root) for file in files if _has_known_format(file))


def _has_known_format(file: Path) -> bool:
    return file.suffix.lower() in FORMAT_BY_SUFFIX and not file.is_dir()


def _check(file: Path, *, root: Path) -> SourceFile | RejectedFile:
    file_format = FORMAT_BY_SUFFIX.get(file.suffix.lower())
    if file_format is None:
        return RejectedFile(file, f"not a kind of file that is read ({' '.join(FORMAT_BY_SUFFIX)})")
    try:
        resolved = file.resolve(strict=True)
        mode = resolved.stat().st_mode
    except (OSError, RuntimeError) as error:
        return RejectedFile(file, f"it cannot be read: {getattr(error, 'strerror', None) or error}")
    if not resolved.is_relative_to(root.resolve()):
        return RejectedFile(file, f"it is a link that leaves {root}; name what it points to")
    if not stat.S_ISREG(mode):
        return RejectedFile(file, "not a file")
    return SourceFile(resolved, file_format)
