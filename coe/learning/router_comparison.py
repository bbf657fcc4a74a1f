"""Compares a new router with the one in use, paired, on prompts that neither saw when it predicted them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import routers
from coe.artifacts.active_state import MIN_EXAMPLES, category_texts
from coe.artifacts.manifest import Artifact
from coe.artifacts.store import ArtifactStore
from coe.core import GENERAL
from coe.errors import ArtifactError
from coe.registry import Registry
from coe.trials.contrasts import SIGNIFICANCE
from coe.trials.judgement import falling_categories, held_out_evidence
from routers.cascade import HELD_OUT
from routers.examples import read_json

PARTS = 5
"""Parts of the prompts that the router in use has not seen; each is classified without its own examples."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """A new router against the one in use: the difference of macro recall with its standard error, on `prompts`
    held-out ones, whether it is a loss, and the categories that fall significantly."""

    gain: float
    error: float
    prompts: int
    is_loss: bool
    falls: str = ""
    note: str = ""
    """Why nothing was compared; empty otherwise."""

    @property
    def sentence(self) -> str:
        if self.note:
            return self.note
        falls = f"; {self.falls}" if self.falls else ""
        return f"macro recall {self.gain:+.3f} ± {self.error:.3f} on the same {self.prompts} held-out prompts{falls}"


def compare(new: Path, in_use: Artifact, registry: Registry, pairs: Sequence[tuple[str, str]]) -> Comparison:
    """Compare the router in the folder `new` with the one in use, paired.

    Both predictions of a prompt are of heads that were not fitted on it. For prompts that the router in use was not
    trained on, it is adapted to the declared categories without these prompts. Each category counts the same.
    """
    candidate, known = read_json(new / HELD_OUT), read_json(in_use.folder / HELD_OUT)
    prompts = {routers.prompt_digest(prompt): (prompt, category) for prompt, category in pairs}
    tested = {digest: pair for digest, pair in prompts.items() if digest in candidate}
    if not tested:
        return Comparison(0.0, 0.0, 0, False, note="no prompt was held out")
    current = {digest: known[digest] for digest in tested if digest in known}
    unseen = {digest: prompt for digest, (prompt, _) in tested.items() if digest not in known}
    current |= _adapted_predictions(registry, in_use, unseen)
    names = [category for _, category in tested.values()]
    sizes = Counter(names)
    weight = np.array([len(names) / (len(sizes) * sizes[name]) for name in names])
    declared = set(registry.category_names)

    def scores(predicted: Mapping[str, str]) -> Any:
        found = [predicted[digest] if predicted[digest] in declared else GENERAL for digest in tested]
        return weight * np.array([one == name for one, name in zip(found, names, strict=True)])

    evidence = held_out_evidence(scores(current), scores(candidate), names, guarded=sorted(sizes))
    found = evidence.overall
    falls = falling_categories([evidence])
    return Comparison(found.value, found.error, found.requests, found.below < SIGNIFICANCE, falls)


def judge(
    new: Artifact,
    store: ArtifactStore,
    packaged: Artifact | None,
    registry: Registry,
    pairs: Sequence[tuple[str, str]],
) -> Comparison:
    """Compare a new router with the one in use, or with the `packaged` one if none was put into use. Where there is
    none, or it is damaged, there is no loss."""
    try:
        in_use = store.current() or packaged
        if in_use is None:
            return Comparison(0.0, 0.0, 0, False, note="none is in use")
        return compare(new.folder, in_use, registry, pairs)
    except ArtifactError as error:
        return Comparison(0.0, 0.0, 0, False, note=f"that one cannot be read ({error})")


def _adapted_predictions(registry: Registry, in_use: Artifact, prompts: Mapping[str, str]) -> dict[str, str]:
    """Predictions of the router in use for prompts that it was not trained on, by digest."""
    texts, found = category_texts(registry), dict[str, str]()
    for part in range(PARTS if prompts else 0):
        held = dict(list(prompts.items())[part::PARTS])
        left = {name: [text for text in own if text not in held.values()] for name, own in texts.items()}
        usable = {name: own if len(own) > MIN_EXAMPLES else () for name, own in left.items()}
        router = routers.load(in_use.folder, declared=usable)
        predicted = router.predict(list(held.values()))
        found |= {digest: router.categories[one.best] for digest, one in zip(held, predicted, strict=True)}
    return found
