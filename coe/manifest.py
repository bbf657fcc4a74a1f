"""What is in a published folder, and that it is still so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from coe.durable import sha256
from coe.errors import ArtifactError

MANIFEST = "manifest.json"


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


def read(folder: Path) -> Artifact:
    """Read and verify a published folder. Raises ArtifactError that names the damaged file and the remedy."""
    manifest = read_manifest(folder)
    for name, digest in manifest.files.items():
        if not (folder / name).is_file() or sha256(folder / name) != digest:
            raise ArtifactError(
                f"{folder / name}: missing or changed since training; delete {folder.parent} to train anew"
            )
    return Artifact(folder, manifest)


def read_manifest(folder: Path) -> Manifest:
    """Nothing else of a published folder read. Raises ArtifactError."""
    try:
        fields = orjson.loads((folder / MANIFEST).read_bytes())
        return Manifest(**{**fields, "categories": tuple(fields["categories"])})
    except (OSError, orjson.JSONDecodeError, TypeError, KeyError) as error:
        raise ArtifactError(
            f"{folder / MANIFEST}: cannot be read ({error}); delete {folder.parent} to train anew"
        ) from error
