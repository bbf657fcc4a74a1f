"""The manifest of an artifact folder: lists its files with their digests, and verifies them.

A version is the digest of the file hashes, the data and the categories, so equal contents have equal versions.

Writes files atomically and durably: after a power cut, a file has its old or its new content, never a part of it.

`replace_file` writes a draft, flushes it to disk and renames it over the file. It holds the content in memory, so it is
for small files. `sync_and_hash` flushes a file that already exists.

The kinds of artifacts that a gateway serves with: one table for the stores, `coe promote` and `/v1/artifacts`.

`coe/artifacts/versions.py` checks a version before it comes into use.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from coe.errors import ArtifactError


def replace_file(path: Path, content: bytes, *, mode: int | None = None) -> None:
    """Replaces a small file atomically: readers see the old or the new content. The new one is on disk on return, with
    the permissions `mode`, by default those of a new file. An error, such as a full disk, leaves no draft behind."""
    draft = path.with_name(f".{path.name}-{os.getpid()}")
    try:
        with draft.open("wb") as file:
            if mode is not None:
                os.fchmod(file.fileno(), mode)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except BaseException:
        with suppress(OSError):
            draft.unlink()
        raise
    sync(path.parent)


def sync_and_hash(path: Path) -> str:
    """Flushes a file to disk and returns its SHA-256. After a power cut, a manifest therefore names no half-written
    file."""
    sync(path)
    return sha256(path)


def sync(path: Path) -> None:
    """Flushes a file or folder to disk."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def sha256(path: Path) -> str:
    """The file's SHA-256 in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


ROUTER, ASSIGNMENT, GATE = "router", "assignment", "gate"


@dataclass(frozen=True, slots=True)
class ArtifactKind:
    """One kind of artifact.

    `remade_by` is the command that makes a damaged version again. `quality` describes the number that versions are
    compared by, `check` what is verified before a promotion, and `default` what serves where no version is in use.
    """

    name: str
    remade_by: str
    quality: str
    check: str
    default: str = "none"


_KINDS = (
    ArtifactKind(
        ROUTER,
        remade_by="coe train",
        quality="accuracy on held-out prompts",
        check="its categories are those of experts.yaml, and its files are complete",
    ),
    ArtifactKind(
        ASSIGNMENT,
        remade_by="coe plan",
        quality="planned quality",
        check="its categories and experts are declared in experts.yaml",
        default="as declared in experts.yaml",
    ),
    ArtifactKind(
        GATE,
        remade_by="coe plan",
        quality="quality with the gate on held-out questions",
        check="its categories are those of experts.yaml",
    ),
)
ARTIFACT_KINDS: Mapping[str, ArtifactKind] = {kind.name: kind for kind in _KINDS}
"""By name, in the order in which a gateway reads them."""


MANIFEST = "manifest.json"
MAX_FILES = 64
"""Files of an artifact, without its manifest."""
_VERSION = re.compile(r"[0-9a-f]{12}")
_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
"""One path component that is neither hidden nor `..`."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """Contents and origin of an artifact folder.

    `files` maps file names to SHA-256 digests. `data` is the digest of what the artifact was made from, such as the
    training prompts or the declaration. `version` is the digest of `files`, `categories` and `data`.
    """

    kind: str
    version: str
    created: str
    categories: tuple[str, ...]
    data: str
    metrics: Mapping[str, Any] = field(repr=False)
    files: Mapping[str, str] = field(repr=False)

    def metric(self, *path: str) -> float | None:
        """The number at these keys of the metrics; None if it is missing. Raises ArtifactError for another value, since
        the version does not cover the metrics."""
        *outer, last = path
        found: Any = self.metrics
        for key in outer:
            found = found.get(key, {}) if isinstance(found, dict) else None
        value = found.get(last) if isinstance(found, dict) else ""
        if value is None:
            return None
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
        problem = f"the metric {'.'.join(path)} in {MANIFEST} is not a number"
        raise ArtifactError(f"{self.kind} {self.version}: {problem}; {_remedy_for(self.kind)}")


@dataclass(frozen=True, slots=True)
class Artifact:
    """A published folder and its manifest."""

    folder: Path
    manifest: Manifest


def version_of(files: Mapping[str, str], *, data: str, categories: Sequence[str]) -> str:
    """The version of these contents: a digest of 12 hexadecimal digits."""
    contents = {"files": files, "data": data, "categories": list(categories)}
    return hashlib.sha256(orjson.dumps(contents, option=orjson.OPT_SORT_KEYS)).hexdigest()[:12]


def is_version(name: str) -> bool:
    """Returns whether the name has the form of a version, and so is safe as a path component."""
    return _VERSION.fullmatch(name) is not None


def check_version(version: str) -> str:
    """Returns the version. Raises ArtifactError for a name that no version has, such as a path."""
    if not is_version(version):
        raise ArtifactError(f"{version[:64]!r} is not an artifact version (12 hexadecimal digits)")
    return version


def is_file_name(name: str) -> bool:
    """Returns True if a file of an artifact may have the name: one path component of plain characters."""
    return _FILE_NAME.fullmatch(name) is not None


def read_artifact(folder: Path) -> Artifact:
    """Reads and verifies a published folder. Raises ArtifactError that names the damaged file and the remedy."""
    manifest = read_manifest(folder)
    for name, digest in manifest.files.items():
        if _sha256_of(folder / name) != digest:
            raise ArtifactError(f"{folder / name}: missing or changed since it was published; {_remedy(folder)}")
    return Artifact(folder, manifest)


def read_manifest(folder: Path) -> Manifest:
    """Reads the manifest only. Raises ArtifactError."""
    try:
        return parse_manifest((folder / MANIFEST).read_bytes())
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{folder / MANIFEST}: cannot be read ({error}); {_remedy(folder)}") from error


@contextmanager
def noting(damaged: dict[str, str] | None, kind: str) -> Iterator[None]:
    """Puts the ArtifactError of a kind into `damaged` and ends the block; None raises it."""
    try:
        yield
    except ArtifactError as error:
        if damaged is None:
            raise
        damaged[kind] = str(error)


def _remedy(folder: Path) -> str:
    """The remedy for a damaged folder ROOT/KIND/VERSION; other folders come with an installation."""
    return _remedy_for(folder.parent.name)


def _remedy_for(name: str) -> str:
    kind = ARTIFACT_KINDS.get(name)
    if kind is None:
        return "install CoE again"
    again = f"make it again with `{kind.remade_by}`"
    return f"{again}; if it is in use, `coe rollback {kind.name}` restores the version before"


def _sha256_of(path: Path) -> str | None:
    """The digest of a file; None if it is missing or cannot be read."""
    try:
        return sha256(path)
    except OSError:
        return None


def parse_manifest(content: bytes) -> Manifest:
    """A manifest from its JSON. Raises ValueError if it is invalid, or its version is not the digest of the rest."""
    try:
        fields = orjson.loads(content)
        manifest = Manifest(**{**fields, "categories": tuple(fields["categories"])})
        files = dict(manifest.files)
        wanted = version_of(files, data=manifest.data, categories=manifest.categories)
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"not a manifest: {error}") from error
    texts = (manifest.kind, manifest.created, manifest.data, *manifest.categories, *files.values())
    if not all(isinstance(text, str) for text in texts) or not isinstance(manifest.metrics, dict):
        raise ValueError("not a manifest: a field has the wrong type")
    if len(files) > MAX_FILES or not all(map(is_file_name, files)):
        raise ValueError(f"not a manifest: it may name {MAX_FILES} files, without folders")
    if manifest.version != wanted:
        raise ValueError(f"its version is {manifest.version!r}, but the digest of its contents is {wanted}")
    return manifest
