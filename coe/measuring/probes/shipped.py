"""The probes that ship with this package: 40 for each category of the shipped experts.yaml.

A part of them are templates, drawn with fresh numbers for every seed, so that no training set can hold their answers.
"""

from __future__ import annotations

import importlib.resources
import secrets
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import orjson

from coe.artifacts.atomic_files import replace_file
from coe.errors import DataError
from coe.measuring.probes.probes import Probe, probe_of, read_probes

SHIPPED = "shipped"
"""Name of these probes, as the benchmark of quality data."""
SEED_FILE = "seed"
"""File in a folder of quality data with the seed of its templates, so that a stopped run keeps its numbers."""
MAX_SEED = 1_000_000


def shipped_rows(categories: Collection[str] | None = None) -> Iterator[dict[str, Any]]:
    """Yield the rows of all shipped probes, of `categories` only where given; templates are not drawn."""
    folder = importlib.resources.files("coe.measuring.probes") / "categories"
    for file in sorted(folder.iterdir(), key=lambda one: one.name):
        if file.name.endswith(".jsonl"):
            rows = (orjson.loads(line) for line in file.read_bytes().splitlines())
            yield from (row for row in rows if categories is None or row["category"] in categories)


def shipped_probes(categories: Collection[str], seed: int) -> list[Probe]:
    """Return the shipped probes of `categories`; the templates are drawn with `seed`."""
    return [probe_of(row, categories, seed) for row in shipped_rows(categories)]


def own_file(config: Path) -> Path:
    """Return the file of the user's own probes: probes.jsonl next to experts.yaml."""
    return config.parent / "probes.jsonl"


def default_probes(own: Path, categories: Collection[str], seed: int) -> list[Probe]:
    """Return the shipped probes and those of the file `own`, if it exists, which replace shipped ones of the same id.

    Raises DataError for mistakes in the file.
    """
    mine = read_probes(own, categories=categories, seed=seed) if own.is_file() else []
    return list({probe.prompt_id: probe for probe in (*shipped_probes(categories, seed), *mine)}.values())


def folder_seed(folder: Path) -> int:
    """Return the seed of a folder of quality data; a random one where it has none. Raises DataError for a damaged
    one."""
    path = folder / SEED_FILE
    if not path.exists():
        return secrets.randbelow(MAX_SEED)
    try:
        return int(path.read_text())
    except ValueError:
        raise DataError(f"{path}: is not a whole number; delete it for new numbers") from None


def write_seed(folder: Path, seed: int) -> None:
    """Write the seed of a folder."""
    replace_file(folder / SEED_FILE, f"{seed}\n".encode())
