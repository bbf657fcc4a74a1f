"""Proposes categories for prompts that the declared ones do not explain.

A prompt is unexplained if the router is unsure of it or takes it for `general`. A classifier of the shipped prompts
tells which shipped category, among those that are not declared, the unexplained prompts belong to. A proposal has its
name, and the terms that set these prompts apart (class-based TF-IDF, Grootendorst 2022, arXiv 2203.05794).
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

import routers
from coe.artifacts.active_state import load_router
from coe.artifacts.manifest import Artifact
from coe.core import GENERAL
from coe.registry import Registry
from coe.terminal import progress_bar
from routers.heads import fit_linear, softmax

SURE = 0.7
"""Confidence from which a prompt is explained, unless it is taken for `general`."""
MIN_PROMPTS = 15
"""Prompts of a proposal."""
MIN_PROBABILITY, C = 0.5, 3.0
"""Probability from which a prompt belongs to a shipped category, and scikit-learn's C of that classifier."""
EXAMPLES, TERMS, MAX_EXAMPLE_CHARACTERS = 5, 5, 300
_WORD = re.compile(r"[^\W\d_]{3,24}")


@dataclass(frozen=True, slots=True)
class Proposal:
    """A kind of prompts: a name, terms that set it apart, its number of prompts, the shares of the declared categories
    that they go to now, and examples."""

    name: str
    terms: tuple[str, ...]
    prompts: int
    routed: Mapping[str, float]
    examples: tuple[str, ...]

    @property
    def entry(self) -> str:
        """An entry for `categories` in experts.yaml; a JSON string is valid YAML."""
        about = json.dumps(f"Requests about {', '.join(self.terms)} (edit this)", ensure_ascii=False)
        lines = [f"- name: {self.name}", f"  description: {about}", "  examples:"]
        quoted = [json.dumps(text[:MAX_EXAMPLE_CHARACTERS], ensure_ascii=False) for text in self.examples]
        return "\n".join([*lines, *(f"    - {text}" for text in quoted)])


def propose_categories(registry: Registry, artifact: Artifact, texts: Sequence[str]) -> tuple[int, list[Proposal]]:
    """Return how many of the `texts` are unexplained by the router in use, and the proposals, the largest first."""
    router, encoder = load_router(registry, artifact), routers.load_encoder(artifact.folder, threads=2)
    predicted = router.predict(texts)
    best = np.array([router.categories[one.best] for one in predicted], dtype=object)
    rows = np.flatnonzero((np.array([one.confidence for one in predicted]) < SURE) | (best == GENERAL))
    if len(rows) < MIN_PROMPTS:
        return len(rows), []
    shipped = routers.starter_examples()
    names = sorted({one.category for one in shipped})
    labels = np.array([names.index(one.category) for one in shipped], dtype=np.int64)
    with progress_bar("reading shipped prompts") as report:
        vectors = encoder.features([one.prompt for one in shipped], partial(report, "embed") if report else None)
    head = fit_linear(vectors, labels, c=C, classes=len(names))
    posterior = softmax(head.logits(encoder.features([texts[row] for row in rows.tolist()])))
    groups = {}
    for index, name in enumerate(names):
        inside = np.flatnonzero((posterior.argmax(axis=1) == index) & (posterior[:, index] >= MIN_PROBABILITY))
        if name not in (GENERAL, *registry.category_names) and len(inside) >= MIN_PROMPTS:
            groups[name] = rows[inside[np.argsort(-posterior[inside, index], kind="stable")]]
    proposals = []
    for terms, (name, members) in zip(_distinctive_terms(texts, list(groups.values())), groups.items(), strict=True):
        shares = {str(key): count / len(members) for key, count in Counter(best[members]).most_common(3)}
        examples = tuple(texts[row] for row in members[:EXAMPLES].tolist())
        proposals.append(Proposal(name, tuple(terms), len(members), shares, examples))
    return len(rows), sorted(proposals, key=lambda proposal: -proposal.prompts)


def proposal_lines(prompts: int, unexplained: int, proposals: Sequence[Proposal]) -> Iterator[str]:
    """Yield the proposals as YAML with comments."""
    yield f"# {unexplained} of {prompts} different prompts are unexplained"
    for one in proposals:
        routed = ", ".join(f"{name} {share:.0%}" for name, share in one.routed.items())
        yield f"\n# {one.prompts} prompts, routed now to {routed}\n{one.entry}"
    if not proposals:
        yield "# no shipped category that is not declared has enough of them"


def _distinctive_terms(texts: Sequence[str], groups: Sequence[NDArray[np.int64]]) -> list[list[str]]:
    """Return the terms of each group with the highest class-based TF-IDF: the share of its prompts that have a term,
    times the logarithm of how much rarer it is in all prompts. A term is in three prompts of the group or more."""
    words = [set(_WORD.findall(text.lower())) for text in texts]
    everywhere = Counter(word for own in words for word in own)
    found = []
    for rows in groups:
        inside = Counter(word for row in rows for word in words[row])
        scores: dict[str, Any] = {
            word: count / len(rows) * np.log(count / len(rows) / (everywhere[word] / len(texts)))
            for word, count in inside.items()
            if count >= 3
        }
        found.append(sorted(scores, key=lambda word: (-scores[word], word))[:TERMS])
    return found
