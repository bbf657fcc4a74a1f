"""Selects models for a declaration: chat models that match the user's patterns, or else a few of each source.

The default selection spreads over prices, because routing gains from experts that differ. In each price class the
newest model is chosen. Everything here is pure.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any

from coe.cli.init.listing import ListedModel, Listing
from coe.cli.init.sources import Source
from coe.registry.capabilities import KnownModel, known_model

MAX_DEFAULT = 5
"""Models of one source without a pattern."""
MAX_EXPERTS = 64
"""Models of one declaration; live checks, scores and plans take time for each."""
MAX_OUTPUT_PRICE = 40.0
"""US dollars per million tokens; models above are selected by a pattern only."""
PRICE_CLASS_FACTOR = 4.0
"""Ratio of prices within one class."""
_OTHER_USES = re.compile(
    r"embed|rerank|bge-|minilm|whisper|tts|speech|transcri|audio|realtime|moderation|guard|dall-e|image|imagen|veo|sora|"
    r"video|ocr|davinci|babbage|-base$",
    re.IGNORECASE,
)
"""Names of models that answer no conversations of text."""
_UNSTABLE = re.compile(r"preview|[-_]exp\b|experimental|beta|search|deep-research|computer-use", re.IGNORECASE)
_SNAPSHOT = re.compile(r"[-@](20\d\d-?[01]\d-?[0-3]\d|\d{4}|\d{3}|latest)$")
_BILLIONS = re.compile(r"(?<![a-z0-9.])(a?)(\d{1,3}(?:\.\d{1,2})?)b(?![a-z0-9])", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A listed model with what litellm's table knows about it."""

    source: Source
    base_url: str
    listed: ListedModel
    known: KnownModel | None

    @property
    def is_chat(self) -> bool:
        """True unless the table or the name says that the model answers no conversations."""
        mode = self.known.mode if self.known is not None else ""
        return mode in ("", "chat") and not _OTHER_USES.search(self.listed.id)

    @property
    def is_hosted(self) -> bool:
        """True for a service with a key, which is paid and has the context of the model's provider."""
        return self.source.kind != "local" and bool(self.source.key_env)

    @property
    def prices(self) -> tuple[float, float] | None:
        """US dollars per million tokens of input and output, as the server reports them or the table; None if unknown.

        The table has those of known providers. Models of other servers may only share the name.
        """
        known = self.known if self.source.kind == "provider" else None
        if self.listed.prices is None and known and known.input_price is not None and known.output_price is not None:
            return known.input_price, known.output_price
        return self.listed.prices

    @property
    def active_parameters_b(self) -> float | None:
        """Parameters per token by the model's name, such as 8b or 30b-a3b, in billions; None if it has none."""
        sizes = _BILLIONS.findall(self.listed.id)
        return float(min(sizes, key=lambda one: not one[0])[1]) or None if sizes else None

    @property
    def strength(self) -> tuple[float, float]:
        """Sorts models by expected quality while nothing is measured: by output price, then by size."""
        return (self.prices[1] if self.prices else 0.0), self.active_parameters_b or 0.0


def candidates(listing: Listing, table: Mapping[str, Any]) -> list[Candidate]:
    """Return the models of a listing that chat, with what litellm's `table` knows about them."""
    found = []
    for model in listing.models:
        names = (f"{listing.source.prefix}{model.id}", model.id)
        found.append(Candidate(listing.source, listing.base_url, model, known_model(table, names)))
    return [one for one in found if one.is_chat]


def matching(found: Sequence[Candidate], patterns: Sequence[str]) -> list[Candidate]:
    """Return the candidates whose name, or SOURCE/NAME, matches one of the patterns, without regard to case."""
    lowered = [pattern.lower() for pattern in patterns]
    return [
        one
        for one in found
        if any(
            fnmatch(name, pattern)
            for name in (one.listed.id.lower(), f"{one.source.name}/{one.listed.id}".lower())
            for pattern in lowered
        )
    ]


def default_models(found: Sequence[Candidate], *, today: str) -> list[Candidate]:
    """Return at most `MAX_DEFAULT` models of one source, in its order. `today` is YYYY-MM-DD."""
    usable = [one for one in found if not (one.known and one.known.retired and one.known.retired <= today)] or found
    names = {one.listed.id for one in usable}
    dated = {one.listed.id: _SNAPSHOT.sub("", one.listed.id) for one in usable if _SNAPSHOT.search(one.listed.id)}
    current = [one for one in usable if dated.get(one.listed.id) not in names]
    stable = [one for one in current if not _UNSTABLE.search(one.listed.id)] or current
    affordable = [one for one in stable if one.prices is None or one.prices[1] <= MAX_OUTPUT_PRICE] or stable
    by_age = sorted(affordable, key=lambda one: -one.listed.created)
    by_class: dict[int, Candidate] = {}  # the newest model of each price class
    for one in by_age:
        if one.prices and one.prices[1]:
            by_class.setdefault(math.floor(math.log(one.prices[1], PRICE_CLASS_FACTOR)), one)
    chosen = (list(by_class.values()) or by_age)[:MAX_DEFAULT]
    return [one for one in found if one in chosen]
