"""In-distribution probability, from similarity to the training data."""

from __future__ import annotations

import numpy as np
import pytest

from routers.heads import MAX_CENTROIDS, fit_centroids
from routers.training.fitting import OUT_OF_SCOPE_SHARE, fit_in_distribution_model


def test_uninformative_similarity_gives_the_assumed_share_of_in_scope_requests() -> None:
    same = np.full((50, 1), 0.4, dtype=np.float32)
    assert fit_in_distribution_model(same, same)(same)[0] == pytest.approx(1 - OUT_OF_SCOPE_SHARE, abs=1e-3)


def test_informative_similarity_separates_out_of_scope_texts() -> None:
    rng = np.random.default_rng(0)
    near, far = (rng.normal(centre, 0.02, (200, 1)).astype(np.float32) for centre in (0.8, 0.3))
    model = fit_in_distribution_model(near, far)
    assert model(near).min() > 0.95
    assert model(far).mean() < 0.15


def test_centroids_are_bounded_unit_vectors_of_every_category() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(3000, 4)).astype(np.float32)
    labels = np.array([0] * 2900 + [2] * 99 + [3])
    means, owners = fit_centroids(vectors, labels)
    assert set(owners.tolist()) == {0, 2, 3}
    assert len(means) == len(owners) <= MAX_CENTROIDS
    np.testing.assert_allclose(np.linalg.norm(means, axis=1), 1.0, atol=1e-5)
