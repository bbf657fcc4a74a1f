"""Find the files of paths and patterns that can be indexed, and report why others cannot.

Links are resolved; a link that leaves the given folder is rejected.
"""

from __future__ import annotations

import glob
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from coe.errors import DataError
from coe.retrieval.ingest.conversion import FORMAT_BY_SUFFIX, FileFormat


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
