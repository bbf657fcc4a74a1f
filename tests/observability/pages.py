"""Reads Prometheus's text format as its own client does."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families


def samples(page: bytes) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Every sample by its name and labels; fails on anything that is not the format, or reported twice."""
    found: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}
    for family in text_string_to_metric_families(page.decode()):
        for sample in family.samples:
            key = (sample.name, frozenset(sample.labels.items()))
            assert key not in found
            found[key] = sample.value
    return found


def value(page: bytes, name: str, **labels: str) -> float:
    """One sample; KeyError where it is not there."""
    return samples(page)[name, frozenset(labels.items())]


def names(page: bytes) -> set[str]:
    """Of all samples."""
    return {name for name, _ in samples(page)}
