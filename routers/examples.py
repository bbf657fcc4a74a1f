"""Labelled prompts: the starter set of this package, and cleaning a data set before training.

`build_training_set` drops blank prompts, duplicates and contradictions (one prompt with two labels), and counts them.

Read and write the files of a router's folder: small JSON objects and float16 arrays (.npz).

Every read error becomes an ArtifactError that names the file and the remedy.
"""

from __future__ import annotations

import hashlib
import importlib.resources
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coe.errors import ArtifactError, DataError
from routers.tokens import replace_surrogates

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


MAX_PROMPT_CHARACTERS = 8192
"""Longer prompts are truncated; no head reads more."""


@dataclass(frozen=True, slots=True)
class Example:
    """One labelled prompt."""

    prompt: str
    category: str


@dataclass(frozen=True, slots=True)
class TrainingSet:
    """Clean data: `texts`, `labels` (n_texts,) as indices of the sorted `categories`, and the counts of `dropped`
    rows by reason. `declared` (n_texts,) marks the texts that were given; training may add others."""

    texts: tuple[str, ...]
    labels: NDArray[np.int64]
    categories: tuple[str, ...]
    dropped: dict[str, int]
    declared: NDArray[np.bool_]


def normalize_prompt(prompt: str) -> str:
    """Truncate and strip a prompt as training does."""
    return replace_surrogates(prompt[:MAX_PROMPT_CHARACTERS]).strip()


def prompt_digest(prompt: str) -> str:
    """Return the digest under which a router stores an exemplar in place of its text."""
    return hashlib.blake2b(normalize_prompt(prompt).encode("utf-8", "replace"), digest_size=12).hexdigest()


def starter_examples() -> list[Example]:
    """Load the labelled prompts that ship with this package. Their `style`, which some have, is for experiments."""
    file = importlib.resources.files("routers") / "starter" / "prompts.jsonl"
    rows = map(json.loads, file.read_text(encoding="utf-8").splitlines())
    return [Example(row["prompt"], row["category"]) for row in rows]


def build_training_set(examples: Sequence[Example]) -> TrainingSet:
    """Clean and index `examples`.

    Raises DataError if fewer than two categories remain, or fewer than two prompts of any category: a category that
    vanished here would be declared and never receive a request.
    """
    labels: dict[str, set[str]] = {}
    blank = 0
    for example in examples:
        text = normalize_prompt(example.prompt)
        if text:
            labels.setdefault(text, set()).add(example.category)
        else:
            blank += 1
    unique = {text: min(found) for text, found in labels.items() if len(found) == 1}
    contradictory = len(labels) - len(unique)
    duplicates = len(examples) - blank - sum(map(len, labels.values()))
    counts = Counter({example.category: 0 for example in examples})
    counts.update(unique.values())
    dropped = {"blank": blank, "duplicate": duplicates, "contradictory": contradictory}
    summary = ", ".join(f"{name}: {count}" for name, count in sorted(counts.items())) or "none"
    if contradictory:
        summary += f"; {contradictory} contradictory: the same prompt under two categories"
    if sum(count > 0 for count in counts.values()) < 2:
        raise DataError(
            f"{len(examples)} examples leave prompts of fewer than two categories ({summary}); add another category"
        )
    if min(counts.values()) < 2:
        raise DataError(f"every category needs two different prompts or more (left: {summary}); add prompts")
    categories = tuple(sorted(counts))
    index = {name: i for i, name in enumerate(categories)}
    return TrainingSet(
        texts=tuple(unique),
        labels=np.array([index[category] for category in unique.values()], dtype=np.int64),
        categories=categories,
        dropped=dropped,
        declared=np.ones(len(unique), dtype=bool),
    )
