"""The gate: the probability that passages improve an expert's answer, and the quality that is to be expected of them.

After ExpertRAG (arXiv 2504.08744), where retrieval and the choice of expert are decided together: what the gate gives
is in the currency of `decide()`. One set of weights for all experts says how much a question needs documents; what
differs between experts and categories is an offset, pulled to nothing where little was measured.

What the words of a question say about whether a document would help, without any model: a few yes and no.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import erf, exp, pi, sqrt
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from coe.errors import ArtifactError
from coe.registry.retrieval import RetrievalPrice

CHARACTERS = 512
"""Of a text that are read."""
_ASKED = (
    "who",
    "when",
    "where",
    "what",
    "which",
    "how many|how much|how long|how old",
    "how|why",
    "is|are|was|were|does|did|do|can|has|have",
    "song|sang|sings|sing|album|band|movie|film|show|season|episode|series|cast|plays|played|actor|voice",
    "first|last|most|largest|biggest|highest|oldest|longest",
    "new|next|current|currently|latest|now|today|recent",
    "name|called|term|mean|meaning|definition|known",
    "book|author|wrote|written",
    "world|country|state|city|capital|located|river|island",
    "won|win|cup|nba|nfl|game|team|super bowl|final|championship",
    "amendment|constitution|president|law|court|war|act|treaty|king|queen",
    "cell|cells|dna|body|blood|muscle|bone|protein|water|energy|patient|patients|disease",
    "write|explain|list|create|solve|translate|summarise|summarize|function|code",
)
_PATTERNS = tuple(re.compile(rf"\b(?:{words})\b") for words in _ASKED)
_YEAR = re.compile(r"\b(?:1[5-9]|20)\d\d\b")
CUES = len(_PATTERNS) + 5


def cues(text: str) -> NDArray[np.float32]:
    """Shape (CUES,): numbers of about 0 to 1."""
    head = text[:CHARACTERS]
    lower = head.lower()
    words = lower.split()
    count = max(1, len(words))
    found = [float(pattern.search(lower) is not None) for pattern in _PATTERNS]
    found += [min(count, 40) / 40, min(len(lower) / count, 20) / 20]
    found += [float(any(map(str.isdigit, lower))), float(_YEAR.search(lower) is not None), float("?" in lower)]
    return np.array(found, dtype=np.float32)


WORTH = 0.2
"""Part of the price that a closer look must be expected to find beyond it: a look takes some ms, for the vector."""
TINY = 1e-9
FILE = "gate.npz"
FORMAT = 4
Array = NDArray[np.float64]


class OutdatedGate(ArtifactError):
    """A gate as it was fitted before; nothing is wrong with it but that it is not read any more."""


@dataclass(frozen=True, slots=True)
class Use:
    """What a consultation takes on average, as measured: tokens of passages and seconds."""

    tokens: float
    seconds: float


@dataclass(frozen=True, slots=True)
class GateThresholds:
    """Above which a request goes on: what a closer `look` is expected to find above `search`, the gain with which it
    goes on to that, and the one with which it is given what was found."""

    look: float
    search: float
    give: float

    @classmethod
    def of(cls, use: Use, price: RetrievalPrice) -> GateThresholds:
        give = price.per_thousand_tokens * use.tokens / 1000
        search = give + price.per_second * use.seconds
        return cls(WORTH * search, search, give)


@dataclass(frozen=True, slots=True, eq=False)
class Odds:
    """Log-odds that something becomes of expert k's answer where passages are given. m categories, k experts.

    `glance` (m + 1,) x the `tempered` posterior and its entropy, or where the text was looked at `look` (m + 1 + CUES +
    dimensions,) x these, its cues and its vector; plus the posterior's mean of `offset` (2, m, k), first for a glance,
    then for a look. `evidence` (3,) weighs these log-odds, the best passage's cosine and a constant, once that cosine
    is known.
    """

    glance: Array
    look: Array
    offset: Array
    evidence: Array

    def glanced(self, posterior: NDArray[np.floating], seen: Array) -> Array:
        """Probabilities, shape (k,), of the posterior (m,) and its `shape`."""
        return _chance(seen @ self.glance + posterior @ self.offset[0])

    def looked(self, posterior: NDArray[np.floating], seen: Array, cosine: float | None) -> Array:
        """Probabilities, shape (k,), of all that was seen of the text."""
        odds = seen @ self.look + posterior @ self.offset[1]
        if cosine is not None:
            odds = self.evidence[0] * odds + self.evidence[1] * cosine + self.evidence[2]
        return _chance(odds)

    def over(self, order: list[int], columns: list[int]) -> Odds:
        """Of the categories and experts at these indices."""
        m = len(order)
        return Odds(
            glance=np.append(self.glance[order], self.glance[-1:]),
            look=np.concatenate((self.look[order], self.look[m:])),
            offset=self.offset[:, order][:, :, columns],
            evidence=self.evidence,
        )


@dataclass(frozen=True, slots=True, eq=False)
class GateEstimate:
    """What passages are expected to do, shape (k,) each: the probability that they improve an expert's answer, and the
    change of its quality, -1 to 1. Of graded scores the first is the improvement expected."""

    helps: Array
    gain: Array


@dataclass(frozen=True, slots=True, eq=False)
class Gate:
    """Fitted by `coe.learning.retraining.gate_fit`; pure. What passages improve and what they spoil is learnt apart:
    a question that an expert cannot answer alone has
    nothing to lose. `measured` (k,) is 0 for an expert of which nothing is known, of
    which nothing is ever expected. `shift` (m, k), times the posterior, is what feedback taught since the fit: added to
    the gain. `spread` (k,) is how far the gain of a closer look lies from that of a glance (root
    of the mean square)."""

    categories: tuple[str, ...]
    experts: tuple[str, ...]
    helps: Odds
    spoils: Odds
    measured: Array
    shift: Array
    spread: Array
    use: Use

    @property
    def dimensions(self) -> int:
        """Of the vectors it was fitted with."""
        return len(self.helps.look) - len(self.helps.glance) - CUES

    def glanced(self, posterior: NDArray[np.floating]) -> GateEstimate:
        """From the router's answer (m,) alone, whichever of its stages gave it: some ten microseconds."""
        soft = tempered(posterior)
        seen = shape(soft)
        return self._outlook(self.helps.glanced(soft, seen), self.spoils.glanced(soft, seen), posterior)

    def looked(
        self,
        posterior: NDArray[np.floating],
        text: str,
        vector: NDArray[np.floating],
        *,
        cosine: float | None = None,
    ) -> GateEstimate:
        """From the text and its vector too, with which the router's surest posterior comes, and from the best
        passage's cosine where the look-up is paid already."""
        soft = tempered(posterior)
        seen = np.concatenate((shape(soft), cues(text), vector))
        helps, spoils = (odds.looked(soft, seen, cosine) for odds in (self.helps, self.spoils))
        return self._outlook(helps, spoils, posterior)

    def promise(self, gain: float, expert: int, bar: float) -> float:
        """By how much a closer look is expected to find the gain above a bar, counting nothing where it is not, by the
        gain that a glance gives: its spread taken for normal."""
        spread = self.spread[expert]
        if spread < TINY:
            return max(gain - bar, 0.0)
        z = (gain - bar) / spread
        return float(spread * (exp(-z * z / 2) / sqrt(2 * pi) + z * (1 + erf(z / sqrt(2))) / 2))

    def _outlook(self, helps: Array, spoils: Array, posterior: NDArray[np.floating]) -> GateEstimate:
        gain = helps - spoils + posterior @ self.shift
        return GateEstimate(helps * self.measured, gain * self.measured)

    def over(self, categories: tuple[str, ...], experts: tuple[str, ...]) -> Gate:
        """The same gate with the same categories in another order, and over other experts: one that was not measured
        is never expected to gain anything."""
        order = [self.categories.index(name) for name in categories]
        at = {name: index for index, name in enumerate(self.experts)}
        columns = [at.get(name, -1) for name in experts]
        known = np.array(columns) >= 0
        return Gate(
            categories=categories,
            experts=experts,
            helps=self.helps.over(order, columns),
            spoils=self.spoils.over(order, columns),
            measured=np.where(known, self.measured[columns], 0.0),
            shift=np.where(known, self.shift[order][:, columns], 0.0),
            spread=np.where(known, self.spread[columns], 0.0),
            use=self.use,
        )

    def save(self, path: Path) -> None:
        """Everything in one file, `path`, which ends in .npz."""
        odds = {f"{side}.{name}": getattr(getattr(self, side), name) for side in _SIDES for name in _ODDS}
        used = np.array([self.use.tokens, self.use.seconds])
        names = {"categories": np.array(self.categories), "experts": np.array(self.experts)}
        own = {"measured": self.measured, "shift": self.shift, "spread": self.spread}
        everything: dict[str, Any] = {"format": np.array(FORMAT), "use": used, **own}
        np.savez(path, **everything | names | odds)

    @classmethod
    def load(cls, path: Path) -> Gate:
        """Raises OutdatedGate for one of an earlier format, ArtifactError where the file is something else."""
        try:
            with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
                found = {name: file[name] for name in file.files}
            if int(found["format"]) < FORMAT:
                raise OutdatedGate(f"{path}: of an earlier CoE; fit it again with `coe score` and `coe plan`")
            if int(found["format"]) > FORMAT:
                raise ValueError(f"format {found['format']}, not {FORMAT}")
            made = _made(cls, found)
        except (OSError, EOFError, BadZipFile, KeyError, ValueError, TypeError, AttributeError) as error:
            raise ArtifactError(f"{path}: not a gate ({error!r}); fit it again with `coe plan`") from error
        return made


def tempered(posterior: NDArray[np.floating]) -> Array:
    """The posterior (..., m) at half its logits: on questions unlike its training a router is surer than it is right,
    and what it thinks of next says more of the question (docs/experiments/retrieval-gate.md)."""
    soft = np.sqrt(posterior, dtype=np.float64)
    return np.asarray(soft / soft.sum(axis=-1, keepdims=True))


def shape(posterior: NDArray[np.floating]) -> Array:
    """The posterior (..., m) and its entropy in nats, shape (..., m + 1)."""
    entropy = -(posterior * np.log(np.maximum(posterior, 1e-9))).sum(axis=-1, keepdims=True)
    return np.concatenate((posterior, entropy), axis=-1, dtype=np.float64)


_SIDES, _ODDS = ("helps", "spoils"), ("glance", "look", "offset", "evidence")


def _made(cls: type[Gate], found: Mapping[str, Any]) -> Gate:
    categories, experts = (tuple(map(str, found[name])) for name in ("categories", "experts"))
    m, k = len(categories), len(experts)
    helps, spoils = (_odds(found, side, m, k) for side in _SIDES)
    measured, spread = (_numbers(found, name, (k,)) for name in ("measured", "spread"))
    shift = _numbers(found, "shift", (m, k))
    if len(helps.look) != len(spoils.look) or len(helps.look) < m + 1 + CUES:
        raise ValueError("weights are missing")
    tokens, seconds = (float(value) for value in found["use"])
    return cls(categories, experts, helps, spoils, measured, shift, spread, Use(tokens, seconds))


def _odds(found: Mapping[str, Any], side: str, m: int, k: int) -> Odds:
    wanted = {"glance": (m + 1,), "look": (-1,), "offset": (2, m, k), "evidence": (3,)}
    return Odds(**{name: _numbers(found, f"{side}.{name}", wanted[name]) for name in _ODDS})


def _numbers(found: Mapping[str, Any], name: str, wanted: tuple[int, ...]) -> Array:
    """ValueError where they are none, or of another shape (-1: of any length)."""
    array: Array = found[name].astype(np.float64)
    if array.ndim != len(wanted) or any(size not in (-1, had) for had, size in zip(array.shape, wanted, strict=True)):
        raise ValueError(f"{name} of another shape than the categories and experts want")
    if not np.isfinite(array).all():
        raise ValueError(f"{name}: not all are numbers")
    return array


def _chance(odds: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-np.clip(odds, -30, 30))))
