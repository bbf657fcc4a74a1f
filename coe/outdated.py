"""Which published versions nobody will ask for again, so that rounds of learning do not fill the disk. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping

KEPT = 10
"""The newest versions, whether they were ever in use or not."""
SETTLED = 86_400.0
"""Seconds for which a version is kept in any case: it may be about to be promoted."""


def outdated(published: Mapping[str, float], wanted: Collection[str | None], *, now: float) -> tuple[str, ...]:
    """Of the `published` versions, by the Unix seconds at which that was, those to remove: not `wanted`, not among the
    newest and not of today."""
    newest = sorted(published, key=lambda version: published[version], reverse=True)[:KEPT]
    kept = {*newest, *wanted}
    return tuple(version for version, at in published.items() if version not in kept and at < now - SETTLED)
