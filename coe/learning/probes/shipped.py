"""The probes that ship with this package: 40 for each category of the shipped experts.yaml.

A part of them are templates, drawn with fresh numbers for every seed, so that no training set can hold their answers.
"""

from __future__ import annotations

import importlib.resources
from collections.abc import Collection, Iterator
from typing import Any

import orjson

from coe.learning.evaluation.probes import Probe, probe_of

SHIPPED = "shipped"
"""Name of these probes, as the benchmark of quality data."""


def shipped_rows(categories: Collection[str] | None = None) -> Iterator[dict[str, Any]]:
    """Yield the rows of all shipped probes, of `categories` only where given; templates are not drawn."""
    folder = importlib.resources.files("coe.learning.probes") / "shipped"
    for file in sorted(folder.iterdir(), key=lambda one: one.name):
        if file.name.endswith(".jsonl"):
            rows = (orjson.loads(line) for line in file.read_bytes().splitlines())
            yield from (row for row in rows if categories is None or row["category"] in categories)


def shipped_probes(categories: Collection[str], seed: int) -> list[Probe]:
    """Return the shipped probes of `categories`; the templates are drawn with `seed`."""
    return [probe_of(row, categories, seed) for row in shipped_rows(categories)]
