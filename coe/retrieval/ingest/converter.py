"""Runs in a process of its own: HTML and PDF files to text, one after another, with little memory, time and rights.

Started by coe/retrieval/ingest/conversion.py as a script, `python -I converter.py`. A job is a line of JSON on standard
input, {path, kind}; the answer goes to standard output: its length in eight bytes, then JSON, {text, title} or {error}.
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

MEMORY = 1024 * 2**20
"""Bytes of address space, the interpreter's own included."""
CPU_SECONDS = 60
"""Processor time for one file."""
MOST_CHARACTERS = 20_000_000
"""Of text in one file: some 10,000 pages."""
LONGEST_TITLE = 200
_NO_NEW_PRIVILEGES = 38
_UNREAD = ("script", "style", "template", "noscript", "nav", "svg", "iframe", "object", "canvas", "form")


class Unreadable(Exception):
    """Why a file has no text, said to people."""


def main() -> None:
    """Until standard input ends."""
    _give_up()
    jobs, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not look like an answer
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    for line in jobs:
        _more_time()
        answer = json.dumps(_answered(json.loads(line))).encode()
        answers.write(len(answer).to_bytes(8, "big") + answer)
        answers.flush()


def _give_up() -> None:
    """No new files, no processes, no new rights; bounded memory."""
    none = {"RLIMIT_FSIZE": 0, "RLIMIT_CORE": 0, "RLIMIT_NPROC": 0}
    for name, limit in (none | {"RLIMIT_AS": MEMORY, "RLIMIT_NOFILE": 64}).items():
        with contextlib.suppress(ValueError, OSError, AttributeError):  # macOS refuses some
            resource.setrlimit(getattr(resource, name), (limit, limit))
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0)


def _more_time() -> None:
    used = resource.getrusage(resource.RUSAGE_SELF)
    limit = int(used.ru_utime + used.ru_stime) + CPU_SECONDS + 1
    resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.getrlimit(resource.RLIMIT_CPU)[1]))


def _answered(job: dict[str, str]) -> dict[str, str]:
    try:
        with Path(job["path"]).open("rb") as file:
            title, text = _READERS[job["kind"]](file)
        if len(text) > MOST_CHARACTERS:
            raise Unreadable(f"its text is longer than {MOST_CHARACTERS:,} characters; split it")
    except Unreadable as error:
        return {"error": str(error)}
    except MemoryError:
        return {"error": f"reading it takes more than {MEMORY // 2**20} MiB of memory; split it"}
    except RecursionError:
        return {"error": "it is nested too deep"}
    except Exception as error:  # libraries raise what they like at broken files
        return {"error": f"broken: {type(error).__name__}: {error}"[:300]}
    return {"title": " ".join(title.split())[:LONGEST_TITLE], "text": text}


def _html(file: BinaryIO) -> tuple[str, str]:
    from bs4 import BeautifulSoup
    from markdownify import MarkdownConverter

    soup = BeautifulSoup(file.read(), "html.parser")
    title = soup.title.get_text() if soup.title else ""
    for element in soup(["title", *_UNREAD]):
        element.decompose()
    plain: dict[str, Any] = {"escape_asterisks": False, "escape_underscores": False, "escape_misc": False}
    converter = MarkdownConverter(strip=["a", "img"], heading_style="ATX", **plain)
    return title, converter.convert_soup(soup)


def _pdf(file: BinaryIO) -> tuple[str, str]:
    from pypdf import PdfReader
    from pypdf.errors import DependencyError

    reader = PdfReader(file)
    try:
        locked = reader.is_encrypted and not reader.decrypt("")
    except (DependencyError, NotImplementedError):
        locked = True
    if locked:
        raise Unreadable("it is encrypted; save it without a password")
    pages = []
    length = 0
    for page in reader.pages:
        pages.append(page.extract_text())
        length += len(pages[-1])
        if length > MOST_CHARACTERS:
            break
    if not length:
        raise Unreadable("it has no text, only pictures of pages; have its text recognised first")
    return _title(reader.metadata), "\n\n".join(pages)


def _title(metadata: Any) -> str:
    with contextlib.suppress(Exception):  # a broken title is none
        return str(metadata.title or "")
    return ""


_READERS = {"html": _html, "pdf": _pdf}

if __name__ == "__main__":
    main()
