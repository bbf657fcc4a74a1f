"""Finds new kinds of requests: clusters of uncertain traffic, proposed as categories with exemplars.

Clusters come from HDBSCAN on the direction of the first principal components of embeddings. `category_entry` turns the
exemplars of a proposal into an entry for experts.yaml, with a name and a description to edit.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_CLUSTERED = 5000
"""Requests that are clustered at most, drawn at random; the time grows with their square."""
MIN_CLUSTER_SIZE = 20
PCA_DIMENSIONS = 10
"""Principal components whose direction is clustered. Density means little in hundreds of dimensions; with lengths, one
tight group of near-duplicates hides groups that merely share a topic (docs/experiments/learning.md)."""
MIN_NEIGHBOURS = 3
"""Neighbours that make a point dense."""
MIN_SILHOUETTE = 0.1
"""Silhouette (-1 to 1) below which a cluster is not distinct from its surroundings."""
MAX_EXEMPLARS = 5
MAX_PROPOSALS = 10
"""Proposals in a report, the largest clusters."""


@dataclass(frozen=True, slots=True)
class CategoryProposal:
    """A cluster of similar requests: its number of requests, their share of the requests considered, and its mean
    silhouette.

    `overlap` has the shares of the declared categories that they were routed to, the largest first; `nearest` is the
    first one. `members` are all its rows, and `exemplars` those nearest to its centre.
    """

    requests: int
    share: float
    silhouette: float
    overlap: Mapping[str, float]
    members: tuple[int, ...]
    exemplars: tuple[int, ...]

    @property
    def nearest(self) -> str:
        return next(iter(self.overlap))

    def to_json(self) -> dict[str, Any]:
        """Return the numbers, without the rows."""
        names = ("requests", "share", "silhouette", "nearest", "overlap", "sentence")
        return {name: getattr(self, name) for name in names}

    @property
    def sentence(self) -> str:
        """The proposal in one sentence, for a report."""
        return (
            f"{self.requests} uncertain requests ({self.share:.1%} of those considered) are alike (silhouette "
            f"{self.silhouette:.2f}), mostly taken for {self.nearest}; consider a separate category"
        )


def propose_categories(
    embeddings: NDArray[np.floating],
    confidence: NDArray[np.floating],
    category: NDArray[np.integer],
    *,
    categories: Sequence[str],
    below: float,
) -> tuple[CategoryProposal, ...]:
    """Clusters among the requests whose confidence is `below` a threshold, largest first; none where there are few.

    `embeddings` (n, dimensions) are unit length, `confidence` (n,) 0 to 1, `category` (n,) the likeliest one's index.
    Clusters are those of HDBSCAN (Campello, Moulavi and Sander 2013), which assigns the rest to none.
    """
    rows = np.flatnonzero(confidence < below)
    rows = np.random.default_rng(0).permutation(rows)[:MAX_CLUSTERED]
    if len(rows) < 2 * MIN_CLUSTER_SIZE:
        return ()
    from sklearn.cluster import HDBSCAN

    points = _directions(embeddings[rows].astype(np.float64))
    clusters = HDBSCAN(min_cluster_size=MIN_CLUSTER_SIZE, min_samples=MIN_NEIGHBOURS, copy=True)
    labels = np.asarray(clusters.fit(points).labels_, dtype=np.int64)  # -1 for none
    if not len(set(labels.tolist()) - {-1}):
        return ()
    clear = _silhouettes(points, labels)
    considered = len(embeddings) * len(rows) / int((confidence < below).sum())
    found = []
    for label in sorted(set(labels.tolist()) - {-1}):
        inside = np.flatnonzero(labels == label)
        silhouette = float(clear[inside].mean())
        if silhouette < MIN_SILHOUETTE:
            continue
        distance = np.linalg.norm(points[inside] - points[inside].mean(axis=0), axis=1)
        central = tuple(int(row) for row in rows[inside[np.argsort(distance)[:MAX_EXEMPLARS]]])
        counts = Counter(categories[row] for row in category[rows[inside]].tolist()).most_common()
        overlap, members = {name: count / len(inside) for name, count in counts}, tuple(rows[inside].tolist())
        found.append(CategoryProposal(len(inside), len(inside) / considered, silhouette, overlap, members, central))
    return tuple(sorted(found, key=lambda proposal: -proposal.requests)[:MAX_PROPOSALS])


def _directions(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    from sklearn.decomposition import PCA

    points = PCA(min(PCA_DIMENSIONS, *vectors.shape), random_state=0).fit_transform(vectors)
    return np.asarray(points / np.maximum(np.linalg.norm(points, axis=1, keepdims=True), 1e-12))


def _silhouettes(points: NDArray[np.float64], labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Silhouette of each point, -1 to 1: how much nearer it is to its own cluster than to the next; points without a
    cluster form one."""
    from sklearn.metrics import silhouette_samples

    if len(set(labels.tolist())) < 2:
        return np.zeros(len(labels))
    return np.asarray(silhouette_samples(points, labels))


MAX_WORDS = 3
"""Distinctive words in a proposed description."""
MAX_EXAMPLE_CHARACTERS = 300
_WORD = re.compile(r"[a-z]{4,24}")


def category_entry(exemplars: Sequence[str], others: Sequence[str], members: Sequence[str] = ()) -> str:
    """YAML for `categories` in experts.yaml, from the prompts of a proposal and prompts of all kinds.

    `members` are all prompts of the proposal, if they are known; the name has words of these.
    """
    words = distinctive_words(members or exemplars, others)
    name = "-".join(words[:2]) or "new-category"
    about = f"Requests about {', '.join(words)} (edit this)" if words else "Describe what these requests have in common"
    lines = [f"- name: {name}", f"  description: {_quoted(about)}", "  examples:"]
    return "\n".join([*lines, *(f"    - {_quoted(text[:MAX_EXAMPLE_CHARACTERS])}" for text in exemplars)]) + "\n"


def distinctive_words(inside: Sequence[str], outside: Sequence[str]) -> list[str]:
    """Up to MAX_WORDS words that most of `inside` have and few of `outside`."""
    own, other = (
        Counter(word for text in texts for word in set(_WORD.findall(text.lower()))) for texts in (inside, outside)
    )
    lift = {word: count / len(inside) - other[word] / max(len(outside), 1) for word, count in own.items() if count > 1}
    return sorted((word for word in lift if lift[word] > 0), key=lambda word: (-lift[word], word))[:MAX_WORDS]


def _quoted(text: str) -> str:
    """The text as a JSON string, which is valid YAML."""
    return json.dumps(text, ensure_ascii=False)
