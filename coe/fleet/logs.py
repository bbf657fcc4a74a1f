"""The log file of one server: its last lines, and a bound on its size."""

from __future__ import annotations

import os
from pathlib import Path

LIMIT = 10 * 2**20
"""Bytes after which a log is cut."""
_KEEP = 2**20
_TAIL = 16 * 2**10


def tail(path: Path, *, lines: int = 20) -> str:
    """The last `lines` lines that are not blank; empty when there is no log."""
    if not path.exists():
        return ""
    text = _last(path, _TAIL).decode(errors="replace")
    return "\n".join([line for line in text.splitlines() if line.strip()][-lines:])


def size(path: Path) -> int:
    """Bytes, 0 where there is no log yet."""
    return path.stat().st_size if path.exists() else 0


def since(path: Path, start: int, *, limit: int = 2**19) -> str:
    """What was written after the first `start` bytes, at most its first `limit`; from the beginning where the log has
    been cut meanwhile."""
    if not path.exists():
        return ""
    with path.open("rb") as file:
        file.seek(start if start <= path.stat().st_size else 0)
        return file.read(limit).decode(errors="replace")


def cap(path: Path, *, limit: int = LIMIT, keep: int = _KEEP) -> None:
    """Cut a log longer than `limit` bytes to its last `keep`, in place.

    The server goes on writing through its open descriptor; that descriptor appends, so it follows the cut. What it
    writes between the read and the cut is lost.
    """
    if not path.exists() or path.stat().st_size <= limit:
        return
    kept = _last(path, keep)
    os.truncate(path, 0)
    with path.open("ab") as file:
        file.write(kept)


def _last(path: Path, size: int) -> bytes:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - size))
        return file.read(size)
