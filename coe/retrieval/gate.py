"""The gate: the probability that passages improve an expert's answer, and the quality that is to be expected of them.

After ExpertRAG (arXiv 2504.08744), where retrieval and the choice of expert are decided together: what the gate gives
is in the currency of `decide()`. One set of weights for all experts says how much a question needs documents; what
differs between experts and categories is an offset, pulled to nothing where little was measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from coe.errors import ArtifactError
from coe.retrieval.cues import CUES, cues

FILE = "gate.npz"
FORMAT = 1
Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Use:
    """What a consultation takes on average, as measured: tokens of passages and seconds."""

    tokens: float
    seconds: float


@dataclass(frozen=True, slots=True, eq=False)
class Gate:
    """Fitted by `coe.learning.gate`; pure. m categories, k experts.

    Log-odds that passages improve expert k's answer: `glance` (m + 1,) x the posterior and its entropy, or where the
    text was looked at `look` (m + 1 + CUES + dimensions,) x these, its cues and its vector; plus the posterior's
    mean of `offset` (2, m, k), first for a glance, then for a look. `evidence` (3,) weighs these log-odds, the best
    passage's cosine and a constant, once that cosine is known. `up` (k,) is what an improved answer gains on average,
    `down` (k,) what one that is not improved loses, in quality.
    """

    categories: tuple[str, ...]
    experts: tuple[str, ...]
    glance: Array
    look: Array
    offset: Array
    evidence: Array
    up: Array
    down: Array
    use: Use

    @property
    def dimensions(self) -> int:
        """Of the vectors it was fitted with."""
        return len(self.look) - len(self.glance) - CUES

    def glanced(self, posterior: NDArray[np.floating]) -> Array:
        """Probabilities, shape (k,), from the posterior (m,) alone: some ten microseconds."""
        return _chance(shape(posterior) @ self.glance + posterior @ self.offset[0])

    def looked(
        self,
        posterior: NDArray[np.floating],
        text: str,
        vector: NDArray[np.floating],
        *,
        cosine: float | None = None,
    ) -> Array:
        """Probabilities, shape (k,), from the text and its vector too, and from the best passage's cosine where the
        look-up is paid already."""
        seen = np.concatenate((shape(posterior), cues(text), vector))
        odds = seen @ self.look + posterior @ self.offset[1]
        if cosine is not None:
            odds = self.evidence[0] * odds + self.evidence[1] * cosine + self.evidence[2]
        return _chance(odds)

    def gain(self, probability: Array) -> Array:
        """Expected change of quality by passages, shape (k,), of probabilities (k,)."""
        return probability * self.up - (1 - probability) * self.down

    def over(self, categories: tuple[str, ...], experts: tuple[str, ...]) -> Gate:
        """The same gate with the same categories in another order, and over other experts: one that was not measured
        is never expected to gain anything."""
        order = [self.categories.index(name) for name in categories]
        rest = len(self.look) - len(order)
        look = np.concatenate((self.look[order], self.look[len(order) :])) if rest else self.look[order]
        at = {name: index for index, name in enumerate(self.experts)}
        columns = [at.get(name, -1) for name in experts]
        known = np.array([column >= 0 for column in columns])
        return replace(
            self,
            categories=categories,
            experts=experts,
            glance=np.append(self.glance[order], self.glance[-1:]),
            look=look,
            offset=np.where(known, self.offset[:, order][:, :, columns], 0.0),
            up=np.where(known, self.up[columns], 0.0),
            down=np.where(known, self.down[columns], 0.0),
        )

    def save(self, path: Path) -> None:
        """Everything in one file, `path`, which ends in .npz."""
        arrays = {name: getattr(self, name) for name in _ARRAYS}
        used = np.array([self.use.tokens, self.use.seconds])
        names = {"categories": np.array(self.categories), "experts": np.array(self.experts)}
        everything: dict[str, Any] = {"format": np.array(FORMAT), "use": used, **names, **arrays}
        np.savez(path, **everything)

    @classmethod
    def load(cls, path: Path) -> Gate:
        """Raises ArtifactError where the file is something else."""
        try:
            with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
                found = {name: file[name] for name in file.files}
            if int(found["format"]) != FORMAT:
                raise ValueError(f"format {found['format']}, not {FORMAT}")
            made = _made(cls, found)
        except (OSError, EOFError, BadZipFile, KeyError, ValueError, TypeError, AttributeError) as error:
            raise ArtifactError(f"{path}: not a gate ({error!r}); fit it again with `coe plan`") from error
        return made


def shape(posterior: NDArray[np.floating]) -> Array:
    """The posterior (..., m) and its entropy in nats, shape (..., m + 1)."""
    entropy = -(posterior * np.log(np.maximum(posterior, 1e-9))).sum(axis=-1, keepdims=True)
    return np.concatenate((posterior, entropy), axis=-1, dtype=np.float64)


_ARRAYS = ("glance", "look", "offset", "evidence", "up", "down")


def _made(cls: type[Gate], found: Mapping[str, Any]) -> Gate:
    assert {field.name for field in fields(cls)} == {*_ARRAYS, "categories", "experts", "use"}
    categories, experts = (tuple(map(str, found[name])) for name in ("categories", "experts"))
    arrays = {name: found[name].astype(np.float64) for name in _ARRAYS}
    m, k = len(categories), len(experts)
    wanted = {"glance": (m + 1,), "offset": (2, m, k), "evidence": (3,), "up": (k,), "down": (k,)}
    if wrong := [name for name, size in wanted.items() if arrays[name].shape != size]:
        raise ValueError(f"{', '.join(wrong)} of another shape than {m} categories and {k} experts want")
    if len(arrays["look"]) < m + 1 + CUES or not all(np.isfinite(array).all() for array in arrays.values()):
        raise ValueError("weights are missing or no numbers")
    tokens, seconds = (float(value) for value in found["use"])
    return cls(categories=categories, experts=experts, use=Use(tokens, seconds), **arrays)


def _chance(odds: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-np.clip(odds, -30, 30))))
