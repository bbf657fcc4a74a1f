"""The files that a gateway watches and reloads when they change, and their states on disk."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from pathlib import Path

from coe.artifacts.kinds import ASSIGNMENT, GATE, ROUTER
from coe.artifacts.manifest import is_version
from coe.artifacts.store import POINTER, ArtifactStore
from coe.errors import ArtifactError
from coe.settings import Settings

FileStates = tuple[tuple[int, int, int] | None, ...]
"""Inode, size and modification time of every watched file; None for a missing one."""


def watched_files(settings: Settings) -> tuple[Path, ...]:
    """The watched files, experts.yaml first."""
    files = (settings.config, *([settings.endpoints_file] if settings.endpoints_file else []))
    return (
        *files,
        *(settings.artifacts / kind / POINTER for kind in (ROUTER, ASSIGNMENT, GATE)),
    )


def files_to_repair(settings: Settings) -> tuple[Path, ...]:
    """The other files that a reload reads: those of the artifacts in use, and the administrator's key. They change only
    when somebody repairs them after a failure."""
    files = [settings.admin_key_file] if settings.admin_key_file else []
    for kind in (ROUTER, ASSIGNMENT, GATE):
        store = ArtifactStore(settings.artifacts, kind)
        with suppress(OSError, ArtifactError):
            if (version := store.in_use()) and is_version(version):
                files += sorted(store.folder(version).iterdir())
    return tuple(files)


def file_states(files: tuple[Path, ...]) -> FileStates:
    """The current states of files."""
    return tuple(_file_state(path) for path in files)


def digests(files: tuple[Path, ...]) -> tuple[bytes | None, ...]:
    """The SHA-256 of each file; None for one that cannot be read."""
    return tuple(_digest(path) for path in files)


def _file_state(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def _digest(path: Path) -> bytes | None:
    try:
        if not path.is_file():  # reading a pipe may wait for ever, and a device may have no end
            return None
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError:
        return None
