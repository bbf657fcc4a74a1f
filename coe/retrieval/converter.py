"""The sandboxed child process that converts one HTML or PDF file to text.

Started by coe/retrieval/indexing.py as `python -I converter.py FILE KIND`; imports nothing of CoE. It prints
JSON: {text, title} or {error}.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import logging
import os
import resource
import sys
import warnings
from pathlib import Path
from typing import Any, BinaryIO

MAX_MEMORY_BYTES = 1024 * 2**20
"""Address space, including the interpreter's own."""
CPU_SECONDS = 60
"""CPU time for one file."""
MAX_CHARACTERS = 20_000_000
"""Characters of text in one file: about 10,000 pages."""
MAX_TITLE_CHARACTERS = 200
_NO_NEW_PRIVILEGES = 38
_SKIPPED_TAGS = ("script", "style", "template", "noscript", "nav", "svg", "iframe", "object", "canvas", "form")


class UnreadableFile(Exception):
    """The reason why a file has no text, for users."""


def main() -> None:
    """Forbid new files, processes and privileges, limit memory and CPU time, and convert the file of the arguments."""
    none = {"RLIMIT_FSIZE": 0, "RLIMIT_CORE": 0, "RLIMIT_NPROC": 0}
    for name, limit in (none | {"RLIMIT_AS": MAX_MEMORY_BYTES, "RLIMIT_NOFILE": 64}).items():
        with contextlib.suppress(ValueError, OSError, AttributeError):  # macOS rejects some
            resource.setrlimit(getattr(resource, name), (limit, limit))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS + 1))
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    with os.fdopen(os.dup(1), "w") as output:
        os.dup2(2, 1)  # so that what libraries print does not mix with the result
        logging.disable(logging.CRITICAL)
        warnings.simplefilter("ignore")
        json.dump(_convert(*sys.argv[1:]), output)


def _convert(path: str, kind: str) -> dict[str, str]:
    try:
        with Path(path).open("rb") as file:
            title, text = _READERS[kind](file)
        if len(text) > MAX_CHARACTERS:
            raise UnreadableFile(f"its text is longer than {MAX_CHARACTERS:,} characters; split it")
    except UnreadableFile as error:
        return {"error": str(error)}
    except MemoryError:
        return {"error": f"reading it needs more than {MAX_MEMORY_BYTES // 2**20} MiB of memory; split it"}
    except RecursionError:
        return {"error": "it is nested too deep"}
    except Exception as error:  # libraries raise errors of any type for broken files
        return {"error": f"broken: {type(error).__name__}: {error}"[:300]}
    return {"title": " ".join(title.split())[:MAX_TITLE_CHARACTERS], "text": text}


def _html(file: BinaryIO) -> tuple[str, str]:
    from bs4 import BeautifulSoup
    from markdownify import MarkdownConverter

    soup = BeautifulSoup(file.read(), "html.parser")
    title = soup.title.get_text() if soup.title else ""
    for element in soup(["title", *_SKIPPED_TAGS]):
        element.decompose()
    unescaped: dict[str, Any] = {"escape_asterisks": False, "escape_underscores": False, "escape_misc": False}
    converter = MarkdownConverter(strip=["a", "img"], heading_style="ATX", **unescaped)
    return title, converter.convert_soup(soup)


def _pdf(file: BinaryIO) -> tuple[str, str]:
    from pypdf import PdfReader
    from pypdf.errors import DependencyError

    reader = PdfReader(file)
    try:
        encrypted = reader.is_encrypted and not reader.decrypt("")
    except (DependencyError, NotImplementedError):
        encrypted = True
    if encrypted:
        raise UnreadableFile("it is encrypted; save it without a password")
    pages = []
    length = 0
    for page in reader.pages:
        pages.append(page.extract_text())
        length += len(pages[-1])
        if length > MAX_CHARACTERS:
            break
    if not length:
        raise UnreadableFile("it has no text, only pictures of pages; have its text recognised first")
    return _title(reader.metadata), "\n\n".join(pages)


def _title(metadata: Any) -> str:
    with contextlib.suppress(Exception):  # a broken title counts as missing
        return str(metadata.title or "")
    return ""


_READERS = {"html": _html, "pdf": _pdf}

if __name__ == "__main__":
    main()
