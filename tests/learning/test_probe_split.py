"""The held-out part of measured quality, with arms of recipes as columns."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from coe.errors import DataError
from coe.learning.moves import split_probes
from coe.measuring.quality import Quality

PROMPTS = tuple(f"prompt {number}" for number in range(200))


def quality() -> Quality:
    scores = np.tile([1.0, 0.5], (len(PROMPTS), 1))
    return Quality("own", PROMPTS, ("code",) * len(PROMPTS), ("coder", "general"), scores, np.full(2, np.nan), 0)


def posteriors(texts: object) -> np.ndarray:
    return np.ones((len(texts), 1), dtype=np.float32)  # type: ignore[arg-type]


def test_arms_are_columns_and_a_prompt_that_they_lack_is_no_held_out_probe() -> None:
    arm = np.where(np.arange(len(PROMPTS)) % 2, 0.75, np.nan)
    split = partial(split_probes, quality(), categories=("code",), experts=("coder", "general"), posteriors=posteriors)
    (plain, all_held), (table, held) = split(), split(arms={"careful": arm})
    assert table.experts == held.seen.experts == ("coder", "general", "careful")
    assert table.mean[0].tolist() == [1.0, 0.5, 0.75]
    assert table.count[0, 0] == plain.count[0, 0] > table.count[0, 2]
    assert 0 < len(held.scores) < len(all_held.scores)
    assert np.isfinite(held.scores).all()
    assert len(held.seen) == len(held.categories) == len(held.scores)


def test_without_any_complete_probe_the_remedy_is_named() -> None:
    arm = np.full(len(PROMPTS), np.nan)
    with pytest.raises(DataError, match="run `coe score` again"):
        split_probes(quality(), categories=("code",), experts=("coder",), posteriors=posteriors, arms={"careful": arm})
