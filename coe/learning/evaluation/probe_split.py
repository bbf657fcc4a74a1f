"""Measured quality in two parts: what a round may learn from, and the held-out part that judges it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from coe.errors import DataError
from coe.learning.estimation.experience import NONE, Experience
from coe.learning.evaluation.quality import Quality
from coe.learning.retraining.plan_round import Probes
from coe.mapping.score_table import ScoreTable, tabulate_prompts

HELD_OUT_SHARE = 0.3
"""Share of the prompts that judges."""

Posteriors = Callable[[Sequence[str]], NDArray[np.float32]]
"""The router's posteriors of texts, shape (n, m)."""


def split_probes(
    data: Quality, *, categories: Sequence[str], experts: Sequence[str], posteriors: Posteriors
) -> tuple[ScoreTable, Probes]:
    """The table of the larger part, and the rest as probes.

    A prompt's part goes by its digest, so that it is the same in every round, whatever else is measured. Raises
    DataError where scores are missing for an expert, a category is not declared, or the set is too small to part.
    """
    if absent := [name for name in experts if name not in data.models]:
        raise DataError(f"probes: no scores of {', '.join(absent)}; run `coe score` for them")
    if unknown := sorted(set(data.categories) - set(categories)):
        raise DataError(f"probes: categories that experts.yaml does not declare: {', '.join(unknown)}")
    held = np.array([is_held_out(prompt, share=HELD_OUT_SHARE) for prompt in data.prompts])
    if held.all() or not held.any():
        raise DataError(f"probes: {len(held)} prompts cannot be parted in two; score more")
    scores = data.scores[:, [data.models.index(name) for name in experts]]
    labels = np.array(data.categories, dtype=object)
    table = tabulate_prompts(labels[~held].tolist(), experts, scores[~held], categories=categories)
    texts = [prompt for prompt, judges in zip(data.prompts, held, strict=True) if judges]
    seen = _unrated_experience(posteriors(texts), categories=tuple(categories), experts=tuple(experts))
    return table, Probes(seen, scores[held], tuple(labels[held].tolist()))


def is_held_out(prompt: str, *, share: float) -> bool:
    """Whether a prompt belongs to the held-out part, a fixed property of its text."""
    digest = hashlib.blake2b(prompt.encode("utf-8", "replace"), digest_size=8, person=b"coe held").digest()
    return int.from_bytes(digest) < share * 2**64


def _unrated_experience(
    posterior: NDArray[np.float32], *, categories: tuple[str, ...], experts: tuple[str, ...]
) -> Experience:
    count = len(posterior)
    return Experience(
        categories=categories,
        experts=experts,
        tenants=("",),
        versions=("",),
        posterior=posterior,
        chosen=np.zeros(count, dtype=np.int16),
        allowed=np.ones((count, len(experts)), dtype=np.bool_),
        propensity=np.full(count, np.nan, dtype=np.float32),
        reward=np.full(count, np.nan, dtype=np.float32),
        kind=np.full(count, NONE, dtype=np.int8),
        corrected=np.full(count, NONE, dtype=np.int16),
        tenant=np.zeros(count, dtype=np.int32),
        version=np.zeros(count, dtype=np.int32),
        time=np.zeros(count),
        identity=np.arange(count, dtype=np.uint64),
    )
