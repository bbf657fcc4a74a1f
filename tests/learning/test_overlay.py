"""Overlays: a tenant with words of its own gets a head of its own, and nobody else does."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from coe.errors import ArtifactError
from coe.learning.experience import Experience
from coe.learning.overlay import Overlay, overlays
from tests.learning.samples import CATEGORIES, told

CODE, GENERAL, LAW = range(3)


def mixed(seed: int, *, count: int = 900, until: float = np.inf) -> Experience:
    """Tenant `a` calls law what the router takes for code, in the first `until` requests; `b` agrees with it."""
    log = told(count, seed=seed, tenants=("a", "b"))
    taken = log.posterior.argmax(axis=1)
    odd = (log.tenant == 0) & (taken == CODE) & (np.arange(count) < until)
    random = np.random.default_rng(seed)
    corrected = np.where(odd & (random.random(count) < 0.7), LAW, -1)
    corrected[(log.tenant == 1) & (random.random(count) < 0.1)] = GENERAL
    agreeing = (log.tenant == 1) & (corrected == GENERAL)
    corrected[agreeing] = taken[agreeing]
    return replace(log, corrected=corrected.astype(np.int16), reward=np.where(odd, 0.0, 1.0).astype(np.float32))


def test_a_tenant_that_uses_a_word_otherwise_gets_a_head_that_knows_it() -> None:
    found = overlays(mixed(0))
    assert list(found) == ["a"]
    head = found["a"]
    assert head.gain > 0.05
    as_code, as_general = np.array([0.9, 0.05, 0.05]), np.array([0.05, 0.9, 0.05])
    assert head.apply(as_code).argmax() == LAW
    assert head.apply(as_general).argmax() == GENERAL
    assert head.apply(np.stack((as_code, as_general))).sum(axis=1) == pytest.approx([1.0, 1.0])


def test_it_is_gone_once_the_newest_requests_no_longer_need_it() -> None:
    assert overlays(mixed(0, until=500)) == {}


def test_corrections_at_random_give_nobody_a_head() -> None:
    kept = 0
    for seed in range(10):
        log = told(600, seed=seed, tenants=("a", "b"))
        random = np.random.default_rng(seed)
        noise = np.where(random.random(600) < 0.1, random.integers(0, 3, 600), -1)
        kept += len(overlays(replace(log, corrected=noise.astype(np.int16))))
    assert kept <= 1


def test_few_corrections_are_not_enough() -> None:
    assert overlays(mixed(0, count=60)) == {}


def test_an_overlay_survives_being_written() -> None:
    head = overlays(mixed(0))["a"]
    back = Overlay.from_json(head.to_json())
    assert back.to_json() == head.to_json()
    np.testing.assert_array_equal(back.weights, head.weights)


@pytest.mark.parametrize("data", [b"{", b"{}", b'{"version": 2}'])
def test_anything_else_is_an_error_with_a_remedy(data: bytes) -> None:
    with pytest.raises(ArtifactError, match="retrain"):
        Overlay.from_json(data)


def test_weights_of_another_size_are_refused() -> None:
    odd = Overlay("a", CATEGORIES, np.eye(2), np.zeros(2), 0.1)
    with pytest.raises(ArtifactError, match="3 categories"):
        Overlay.from_json(odd.to_json())
