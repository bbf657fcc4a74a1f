"""The report of `coe train`: macro recall, the weakest categories and what to do, and whether the router in use is
better on the same held-out prompts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import routers
from coe.artifacts.active_state import MIN_EXAMPLES, category_texts
from coe.artifacts.manifest import MANIFEST, Artifact
from coe.artifacts.store import ArtifactStore
from coe.core import GENERAL
from coe.errors import ArtifactError
from coe.learning.promotion import SIGNIFICANCE, falling_categories, held_out_evidence
from coe.registry import Registry

FEW_EXAMPLES = 30
"""Prompts of a category below which more of them are the best remedy."""
SHOWN_WEAKEST = 3
ADEQUATE_RECALL = 0.9
"""Recall from which a category needs no advice."""
SHARED_BORDER = 0.15
"""Share of prompts that two categories lose to each other above which they are probably one."""
PARTS = 5
"""Parts of the prompts that the router in use has not seen; each is classified without its own examples."""


@dataclass(frozen=True, slots=True)
class WeakCategory:
    """A category with its number of held-out prompts, its recall, and the category that gets most of the others."""

    name: str
    prompts: int
    recall: float
    taken_for: str
    share: float
    advice: str

    @property
    def sentence(self) -> str:
        confusion = f", {self.share:.0%} taken for {self.taken_for}" if self.share else ""
        return f"{self.name}: {self.recall:.0%} of {self.prompts} prompts right{confusion}; {self.advice}"


def macro_recall(confusion: Mapping[str, Any]) -> tuple[float, float]:
    """The mean recall of the categories and its standard error, each recall as that of a Beta(1, 1) prior.

    Categories have few prompts, of which all may be right by chance: the error of such a recall is not zero.
    """
    counts = np.array(confusion["counts"], dtype=np.float64)
    right, total = counts.diagonal(), counts.sum(axis=1)
    smooth = (right + 1) / (total + 2)
    error = float((smooth * (1 - smooth) / (total + 3)).sum() ** 0.5) / len(total)
    return float((right / np.maximum(total, 1)).mean()), error


def weakest(confusion: Mapping[str, Any]) -> list[WeakCategory]:
    """The categories of lowest recall, below ADEQUATE_RECALL, the worst first."""
    names, counts = confusion["categories"], np.array(confusion["counts"], dtype=np.float64)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    found = []
    for row in np.argsort(shares.diagonal(), kind="stable")[:SHOWN_WEAKEST]:
        if shares[row, row] >= ADEQUATE_RECALL:
            break
        others = shares[row].copy()
        others[row] = 0
        rival, prompts = int(others.argmax()), int(counts[row].sum())
        if min(shares[row, rival], shares[rival, row]) > SHARED_BORDER and GENERAL not in (names[row], names[rival]):
            advice = f"merge it with {names[rival]}, or say in both descriptions where the border is"
        elif prompts < FEW_EXAMPLES:
            advice = f"add examples ({FEW_EXAMPLES} or more work well)"
        else:
            advice = f"describe it better, and add prompts that look like {names[rival]}"
        found.append(
            WeakCategory(names[row], prompts, float(shares[row, row]), names[rival], float(others[rival]), advice)
        )
    return found


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
    candidate, known = routers.held_out(new), routers.held_out(in_use.folder)
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


NOTHING_IN_USE = "none is in use"


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
        if in_use is None or in_use.manifest.version == new.manifest.version:
            return Comparison(0.0, 0.0, 0, False, note=NOTHING_IN_USE if in_use is None else "it is the same router")
        return compare(new.folder, in_use, registry, pairs)
    except ArtifactError as error:
        return Comparison(0.0, 0.0, 0, False, note=f"that one cannot be read ({error})")


def training_report(metrics: Mapping[str, Any], judged: Comparison) -> dict[str, Any]:
    """What `coe train` prints, JSON-able."""
    if "confusion" not in metrics:
        return {"headline": "no held-out figures", "weakest": [], "comparison": judged.sentence}
    value, error = macro_recall(metrics["confusion"])
    return {
        "macro_recall": value,
        "error": error,
        "headline": f"macro recall {value:.1%} ± {1.96 * error:.1%} on held-out prompts",
        "weakest": [category.sentence for category in weakest(metrics["confusion"])],
        "comparison": judged.sentence,
    }


def training_lines(report: Mapping[str, Any]) -> Iterator[str]:
    """Yield the report of a training run, which `coe train` prints."""
    state = "in use" if report["in_use"] else "NOT in use: it is worse (--force puts it into use all the same)"
    yield f"router {report['version']} is {state}; {report['headline']}"
    yield f"compared with the router in use: {report['comparison']}"
    yield from report["weakest"]
    if dropped := {why: count for why, count in report["metrics"].get("dropped", {}).items() if count}:
        yield "prompts left out: " + ", ".join(f"{count} {why}" for why, count in dropped.items())
    yield f"held-out figures are in {Path(report['folder']) / MANIFEST}"


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
