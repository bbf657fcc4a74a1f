"""Score fusion, and which candidates need no exact score."""

from __future__ import annotations

import numpy as np
import pytest

from coe.retrieval.search import MIN_CANDIDATES, fuse, unscored_candidates


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("wanted", [1, 8, 40])
def test_skipped_candidates_are_never_among_the_best(seed: int, wanted: int) -> None:
    random = np.random.default_rng(seed)
    cosine = dict(enumerate(random.beta(4, 4, 400).tolist()))
    bm25 = {one: 20 * cosine[one] * random.random() + 3 * random.random() for one in range(0, 400, 2)}
    near = {one: cosine[one] for one in sorted(cosine, key=lambda one: -cosine[one])[:MIN_CANDIDATES]}
    words = {one: bm25[one] for one in sorted(bm25, key=lambda one: -bm25[one])[:MIN_CANDIDATES]}
    new = unscored_candidates(near, words, wanted=wanted)
    everything = near | {one: cosine[one] for one in words}
    assert set(new) <= words.keys() - near.keys()
    assert fuse(near | {one: cosine[one] for one in new}, words)[:wanted] == fuse(everything, words)[:wanted]
    if wanted == 1:
        assert len(new) < len(words.keys() - near.keys())


def test_no_candidate_is_skipped_if_all_chunks_are_near() -> None:
    near = {"a": 0.9, "b": 0.1}
    assert unscored_candidates(near, {"b": 3.0, "c": 0.1}, wanted=1) == ["c"]
