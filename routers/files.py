"""Read and write the files of a router's folder: small JSON objects and float16 arrays (.npz).

Every read error becomes an ArtifactError that names the file and the remedy.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coe.errors import ArtifactError

Arrays = dict[str, NDArray[Any]]


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object. Raises ArtifactError if `path` is missing or holds something else."""
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ArtifactError(f"{path}: missing; train the router again or name its folder") from None
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path}: unreadable ({error}); train the router again") from error
    if not isinstance(value, dict):
        raise ArtifactError(f"{path}: not a JSON object; train the router again")
    return value


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def read_arrays(path: Path, *names: str) -> Arrays:
    """Read the arrays `names` of an .npz file, float16 as float32. Raises ArtifactError."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: np.asarray(archive[name]) for name in names}
    except FileNotFoundError:
        raise ArtifactError(f"{path}: missing; train the router again or name its folder") from None
    except Exception as error:  # zipfile, zlib, KeyError and ValueError all mean the same here
        raise ArtifactError(f"{path}: damaged ({error}); train the router again") from error
    return {name: a.astype(np.float32) if a.dtype == np.float16 else a for name, a in arrays.items()}


def write_arrays(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write `arrays` to an .npz file, floats as float16."""
    narrow: Arrays = {n: a.astype(np.float16) if np.issubdtype(a.dtype, np.floating) else a for n, a in arrays.items()}
    np.savez(path, allow_pickle=False, **narrow)  # uncompressed: float16 compresses badly, and unpacking delays start


def content_version(folder: Path, names: list[str]) -> str:
    """Return the first 12 hex digits of the SHA-256 over the named files."""
    digest = hashlib.sha256()
    for name in sorted(names):
        try:
            content = (folder / name).read_bytes()
        except OSError as error:
            raise ArtifactError(f"{folder / name}: {error.strerror}; train the router again") from error
        digest.update(hashlib.sha256(content).digest())
    return digest.hexdigest()[:12]
