"""Versioned folders with a manifest; publishing and promoting are one atomic rename each.

ROOT/KIND/VERSION/manifest.json + the files it lists      never changed once published
ROOT/KIND/current                                         the version in use, one line
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson

from coe.errors import ArtifactError

MANIFEST = "manifest.json"
POINTER = "current"


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a folder holds and whence. `files` maps names to SHA-256; `version` is the digest of both and of `data`."""

    kind: str
    version: str
    created: str
    categories: tuple[str, ...]
    data: str
    metrics: Mapping[str, Any] = field(repr=False)
    files: Mapping[str, str] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Artifact:
    """A published folder and its manifest."""

    folder: Path
    manifest: Manifest


class ArtifactStore:
    """The artifacts of one kind under a root folder."""

    def __init__(self, root: Path, kind: str) -> None:
        self._kind = kind
        self._folder = root / kind

    @contextmanager
    def draft(self) -> Iterator[Path]:
        """A folder to write files into; gone at the end unless published."""
        self._folder.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=".draft-", dir=self._folder))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def publish(self, draft: Path, *, categories: Sequence[str], data: str, metrics: Mapping[str, Any]) -> Artifact:
        """Seal a draft with its manifest and move it to its version. Same files and data, same version."""
        files = {path.name: _sha256(path) for path in sorted(draft.iterdir())}
        contents = {"files": files, "data": data, "categories": list(categories)}
        version = hashlib.sha256(orjson.dumps(contents, option=orjson.OPT_SORT_KEYS)).hexdigest()[:12]
        created = datetime.now(UTC).isoformat(timespec="seconds")
        manifest = Manifest(self._kind, version, created, tuple(categories), data, dict(metrics), files)
        (draft / MANIFEST).write_bytes(orjson.dumps(asdict(manifest), option=orjson.OPT_INDENT_2))
        folder = self._folder / version
        if not folder.exists():
            draft.chmod(0o755)
            draft.rename(folder)
        return Artifact(folder, manifest)

    def promote(self, version: str) -> None:
        """Make a published version the one in use. Raises ArtifactError when it is not there."""
        if not (self._folder / version / MANIFEST).is_file():
            raise ArtifactError(f"{self._folder / version}: no such {self._kind} artifact to promote")
        pointer = self._folder / f".{POINTER}-{os.getpid()}"
        pointer.write_text(version + "\n", encoding="ascii")
        pointer.replace(self._folder / POINTER)

    def forget(self) -> None:
        """Have no version in use; what was published stays."""
        (self._folder / POINTER).unlink(missing_ok=True)

    def current(self) -> Artifact | None:
        """The version in use, every file checked against its digest; None before the first promotion."""
        try:
            version = (self._folder / POINTER).read_text(encoding="ascii").strip()
        except FileNotFoundError:
            return None
        return read(self._folder / version)


def read(folder: Path) -> Artifact:
    """Read and verify a published folder. Raises ArtifactError that names the damaged file and the remedy."""
    try:
        fields = orjson.loads((folder / MANIFEST).read_bytes())
        manifest = Manifest(**{**fields, "categories": tuple(fields["categories"])})
    except (OSError, orjson.JSONDecodeError, TypeError, KeyError) as error:
        raise ArtifactError(
            f"{folder / MANIFEST}: cannot be read ({error}); delete {folder.parent} to train anew"
        ) from error
    for name, digest in manifest.files.items():
        if not (folder / name).is_file() or _sha256(folder / name) != digest:
            raise ArtifactError(
                f"{folder / name}: missing or changed since training; delete {folder.parent} to train anew"
            )
    return Artifact(folder, manifest)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
