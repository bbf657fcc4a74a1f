"""An artifact as one tar archive: packed whole, and verified whole before a file of it is written."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

from coe.artifacts.manifest import MANIFEST, MAX_FILES, Manifest, is_file_name, parsed
from coe.errors import ArtifactError

LARGEST = 512 * 2**20
"""Bytes of a version, which Redis keeps as one value."""
MAX_MANIFEST_BYTES = 64 * 2**20


def pack(folder: Path) -> bytes:
    """The files of a published folder. Raises ArtifactError for more than LARGEST bytes."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for path in sorted(folder.iterdir()):
            tar.add(path, path.name)
    if packed.tell() > LARGEST:
        raise ArtifactError(f"{folder}: {packed.tell() >> 20} MB, more than the {LARGEST >> 20} MB that Redis can keep")
    return packed.getvalue()


def unpack(packed: bytes, into: Path, *, kind: str, version: str, what: str) -> None:
    """Write the files of an archive that holds this version and nothing else.

    Raises ArtifactError, with nothing written, for a file that is not plain, has another name or digest than the
    manifest says, or is missing, and for a manifest of another version.
    """
    try:
        digests, manifest = _inspected(packed)
        if (manifest.kind, manifest.version) != (kind, version):
            raise ValueError(f"it holds {manifest.kind} {manifest.version}")
        if digests != manifest.files:
            wrong = sorted(name for name, _ in digests.items() ^ manifest.files.items())
            raise ValueError(f"{wrong[0]} is missing, too many, or not what its digest says")
        for name, content in _files(packed):
            (into / name).write_bytes(content)
    except (tarfile.TarError, ValueError, OverflowError) as error:
        raise ArtifactError(
            f"{what} is damaged: {error}; `coe promote {kind} {version}` where it was made mends it"
        ) from error


def _inspected(packed: bytes) -> tuple[dict[str, str], Manifest]:
    """The digest of every file but the manifest, and that. Raises ValueError."""
    digests: dict[str, str] = {}
    manifest = None
    for name, content in _files(packed):
        if name == MANIFEST:
            if manifest is not None or len(content) > MAX_MANIFEST_BYTES:
                raise ValueError(f"{MANIFEST} is too large or there twice")
            manifest = parsed(content)
        elif name in digests or len(digests) == MAX_FILES:
            raise ValueError(f"{name!r} is there twice, or is one of more than {MAX_FILES} files")
        else:
            digests[name] = hashlib.sha256(content).hexdigest()
    if manifest is None:
        raise ValueError(f"{MANIFEST} is missing")
    return digests, manifest


def _files(packed: bytes) -> Iterator[tuple[str, bytes]]:
    """Names and contents. Raises ValueError for a member that is no plain file, or whose name is a path.

    The archive may not be compressed, nor a member sparse: so they hold no more than the archive has bytes.
    """
    with tarfile.open(fileobj=io.BytesIO(packed), mode="r:") as tar:
        for member in tar:
            plain = member.isreg() and not member.issparse() and is_file_name(member.name)
            content = tar.extractfile(member) if plain and member.size <= len(packed) else None
            if content is None:
                raise ValueError(f"it holds {member.name[:64]!r}, which is no plain file")
            yield member.name, content.read()
