"""Which files a path or pattern means: those that can be read, and why others are not taken."""

from __future__ import annotations

import glob
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from coe.errors import DataError
from coe.retrieval.ingest.conversion import KINDS, Kind


@dataclass(frozen=True, slots=True)
class Found:
    """A file to be read, where it truly lies."""

    path: Path
    kind: Kind


@dataclass(frozen=True, slots=True)
class Refused:
    """A file that is not taken, and why."""

    path: Path
    why: str


def find(paths: Sequence[str]) -> list[Found | Refused]:
    """The files that paths and patterns (*, ?, **) mean, each once, in order. In folders those of a known kind are
    taken; hidden ones are not, nor are links followed there. Raises DataError for what does not exist."""
    found: dict[Path, Found | Refused] = {}
    for path in paths:
        for one in _meant(path):
            found.setdefault(one.path, one)
    return [found[path] for path in sorted(found)]


def _meant(path: str) -> Iterator[Found | Refused]:
    where = Path(path)
    if where.is_dir():
        yield from _within(where)
    elif os.path.lexists(where):
        yield _looked_at(where, root=where.parent, named=True)
    elif glob.has_magic(path):
        root = _root(path)
        matches = [Path(match) for match in glob.iglob(path, recursive=True)]  # noqa: PTH207 -- patterns may be absolute
        if not matches:
            raise DataError(f"{path}: nothing matches")
        yield from (_looked_at(match, root=root, named=False) for match in matches if _wanted(match))
    else:
        raise DataError(f"{path}: there is no such file or folder")


def _root(pattern: str) -> Path:
    """The folder before the first wildcard."""
    parts = Path(pattern).parts
    fixed = next(number for number, part in enumerate(parts) if glob.has_magic(part))
    return Path(*parts[:fixed])


def _within(folder: Path) -> Iterator[Found | Refused]:
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        files = (Path(place, name) for name in sorted(names) if not name.startswith("."))
        yield from (_looked_at(file, root=folder, named=False) for file in files if _wanted(file))


def _wanted(file: Path) -> bool:
    return file.suffix.lower() in KINDS and not file.is_dir()


def _looked_at(file: Path, *, root: Path, named: bool) -> Found | Refused:
    kind = KINDS.get(file.suffix.lower())
    if kind is None and named:
        return Refused(file, f"not a kind of file that is read ({' '.join(KINDS)})")
    assert kind is not None
    try:
        real = file.resolve(strict=True)
        mode = real.stat().st_mode
    except (OSError, RuntimeError) as error:
        return Refused(file, f"it cannot be read: {getattr(error, 'strerror', None) or error}")
    if not real.is_relative_to(root.resolve()):
        return Refused(file, f"it is a link that leaves {root}; name what it points to")
    if not stat.S_ISREG(mode):
        return Refused(file, "not a file")
    return Found(real, kind)
