"""Splits measured quality in two: a part that a plan round learns from, and a held-out part that judges it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from coe.errors import DataError
from coe.learning.experience import Experience
from coe.learning.moves import HeldOutProbes
from coe.measuring.quality import Quality
from coe.planning.score_table import ScoreTable, tabulate_softly

HELD_OUT_SHARE = 0.3
"""Share of the prompts in the held-out part."""

Array = NDArray[np.float64]
Posteriors = Callable[[Sequence[str]], NDArray[np.float32]]
"""Returns the router's posteriors of texts, shape (n, m)."""


def split_probes(
    data: Quality,
    *,
    categories: Sequence[str],
    experts: Sequence[str],
    posteriors: Posteriors,
    arms: Mapping[str, Array] = MappingProxyType({}),
) -> tuple[ScoreTable, HeldOutProbes]:
    """The score table of the larger part, and the rest as held-out probes.

    A digest of the prompt decides its part, so that it is the same in every round. `arms` are the scores of further
    columns, shape (n_prompts,), NaN where a prompt was not measured; it is then not a held-out probe. Raises DataError
    where an expert has no scores, a category is not declared, or the set is too small to split.
    """
    if absent := [name for name in experts if name not in data.models]:
        raise DataError(f"probes: no scores of {', '.join(absent)}; run `coe score` for them")
    if unknown := sorted(set(data.categories) - set(categories)):
        raise DataError(f"probes: categories that experts.yaml does not declare: {', '.join(unknown)}")
    is_held = np.array([is_held_out(prompt, share=HELD_OUT_SHARE) for prompt in data.prompts])
    if is_held.all() or not is_held.any():
        raise DataError(f"probes: {len(is_held)} prompts cannot be split in two; score more")
    scores = np.column_stack((data.scores[:, [data.models.index(name) for name in experts]], *arms.values()))
    columns, is_complete = (*experts, *arms), np.isfinite(scores).all(axis=1)
    if not (is_held & is_complete).any():
        raise DataError("probes: no held-out prompt has recorded answers of all experts; run `coe score` again")
    labels = np.array(data.categories, dtype=object)
    member = labels[:, None] == np.array(categories, dtype=object)
    table = tabulate_softly(categories, columns, member[~is_held], scores[~is_held])
    is_held &= is_complete
    texts = [prompt for prompt, judges in zip(data.prompts, is_held, strict=True) if judges]
    seen = replace(Experience.blank(categories, columns, len(texts)), posterior=posteriors(texts))
    return table, HeldOutProbes(seen, scores[is_held], tuple(labels[is_held].tolist()))


def is_held_out(prompt: str, *, share: float) -> bool:
    """Return whether a prompt belongs to the held-out part, a fixed property of its text."""
    digest = hashlib.blake2b(prompt.encode("utf-8", "replace"), digest_size=8, person=b"coe held").digest()
    return int.from_bytes(digest) < share * 2**64
