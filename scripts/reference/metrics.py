"""The page on Prometheus metrics, from the metrics that a started gateway has."""

from __future__ import annotations

from functools import cache
from typing import Any

from scripts.reference.markdown import code, sentence, table
from scripts.reference.sources import metric_families

TITLE = "Metrics"
ABOUT = "Every Prometheus metric with its type, labels and meaning."

_PAGE = """\
# Metrics

`GET /metrics` returns these metrics in Prometheus's text format, summed over the worker processes of one gateway.
Where API keys are declared, it needs a key with the scope `admin`. Label values are declared names and fixed words, so
their number is bounded.

## Service

{own}

## Buckets

Histograms have these upper bounds, in seconds:

{buckets}

## Process

Each worker process reports its own values.

{process}
"""


def page() -> str:
    """The page, in Markdown."""
    own = [one for one in _families() if one.name.startswith("coe_")]
    process = [one for one in _families() if not one.name.startswith("coe_")]
    buckets = [(code(one.name), ", ".join(f"{bound:g}" for bound in one.bounds)) for one in own if one.bounds]
    return _PAGE.format(own=_table(own), process=_table(process), buckets=table(("metric", "bounds"), buckets))


@cache
def names() -> frozenset[str]:
    """Every metric, histograms with their three series too."""
    series = {one.name + end for one in _families() if one.bounds for end in ("_bucket", "_count", "_sum")}
    return frozenset(series | {one.name for one in _families()})


@cache
def _families() -> tuple[Any, ...]:
    return tuple(sorted(metric_families(), key=lambda one: str(one.name)))


def _table(families: list[Any]) -> str:
    rows = [(code(one.name), one.kind, ", ".join(map(code, one.labels)), sentence(one.help_text)) for one in families]
    return table(("metric", "type", "labels", "meaning"), rows)
