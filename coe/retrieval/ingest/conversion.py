"""Find files to index and convert them to text: text and Markdown in this process, HTML and PDF in a sandboxed child.

`find_files` follows no links. The child process has limits for memory, CPU
and wall-clock time, cannot write files, start processes or gain privileges, and has an empty environment. It can still
read what the user may read, and use the network: convert documents from untrusted people in a virtual machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import orjson

from coe.errors import ConfigError, DataError, DocumentError, pip_install
from coe.retrieval.ingest import converter
from coe.retrieval.ingest.chunking import normalize_text

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
