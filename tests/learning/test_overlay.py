"""Overlays: a tenant whose categories differ gets a head of its own, and no other tenant does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest

from coe.errors import ArtifactError
from coe.jobs.rounds.overlay_round import OverlayResult, RouterPosteriors, judge_overlays
from coe.learning.estimation.experience import Experience
from coe.learning.estimation.experience_loader import load_experience
from coe.records.record import observed
from coe.routing.classification import Overlay
from tests.learning.samples import CATEGORIES, EXPERTS, rated_experience, record

CODE, GENERAL, LAW = range(3)


def mixed(seed: int, *, count: int = 900, deadline: float = np.inf) -> Experience:
    """Tenant `a` calls law what the router takes for code, in the first `deadline` requests; `b` agrees with it."""
    log = rated_experience(count, seed=seed, tenants=("a", "b"))
    taken = log.posterior.argmax(axis=1)
    odd = (log.tenant == 0) & (taken == CODE) & (np.arange(count) < deadline)
    random = np.random.default_rng(seed)
    corrected = np.where(odd & (random.random(count) < 0.7), LAW, -1)
    corrected[(log.tenant == 1) & (random.random(count) < 0.1)] = GENERAL
    agreeing = (log.tenant == 1) & (corrected == GENERAL)
    corrected[agreeing] = taken[agreeing]
    return replace(log, corrected=corrected.astype(np.int16), reward=np.where(odd, 0.0, 1.0).astype(np.float32))


def corrected_only(seed: int, *, share: float, count: int = 900) -> Experience:
    """Without ratings; tenant `a` corrects this share of the requests classified as code to law."""
    log = rated_experience(count, seed=seed, tenants=("a", "b"))
    said = (log.tenant == 0) & (log.posterior.argmax(axis=1) == CODE)
    said &= np.random.default_rng(seed).random(count) < share
    silent = {"reward": np.full(count, np.nan, np.float32), "kind": np.full(count, -1, np.int8)}
    return replace(log, corrected=np.where(said, LAW, -1).astype(np.int16), **silent)


def later(log: Experience, head: Overlay, *, back: float) -> tuple[Experience, np.ndarray]:
    """More requests, served with the head of `a`, which corrects this share of what it changed back to code."""
    plain = log.posterior
    served = np.where((log.tenant == 0)[:, None], head.apply(plain), plain).astype(np.float32)
    changed = served.argmax(axis=1) != plain.argmax(axis=1)
    said = changed & (np.random.default_rng(1).random(len(log)) < back)
    kind = np.full(len(log), -1, np.int8)
    corrected = np.where(said, CODE, -1).astype(np.int16)
    reward = np.full(len(log), np.nan, np.float32)
    return replace(log, posterior=served, corrected=corrected, time=log.time + 10_000, kind=kind, reward=reward), plain


def verdicts(tried: tuple[OverlayResult, ...]) -> Mapping[str, str]:
    return {one.tenant: one.verdict for one in tried}


def head_of(log: Experience) -> Overlay:
    head = {one.tenant: one.overlay for one in judge_overlays(log)}["a"]
    assert head is not None
    return head


def test_a_tenant_that_uses_a_word_differently_gets_an_overlay_for_it() -> None:
    assert verdicts(judge_overlays(mixed(0))) == {"a": "new", "b": "not better"}
    head = head_of(mixed(0))
    assert head.gain > 0.05
    as_code, as_general = np.array([0.9, 0.05, 0.05]), np.array([0.05, 0.9, 0.05])
    assert head.apply(as_code).argmax() == LAW
    assert head.apply(as_general).argmax() == GENERAL
    assert head.apply(np.stack((as_code, as_general))).sum(axis=1) == pytest.approx([1.0, 1.0])


def test_an_overlay_that_the_newest_requests_no_longer_need_is_not_accepted() -> None:
    assert verdicts(judge_overlays(mixed(0, deadline=500))) == {"a": "not better", "b": "not better"}


def test_random_corrections_give_no_tenant_an_overlay() -> None:
    kept = 0
    for seed in range(10):
        log = rated_experience(600, seed=seed, tenants=("a", "b"))
        random = np.random.default_rng(seed)
        noise = np.where(random.random(600) < 0.1, random.integers(0, 3, 600), -1)
        kept += sum(one.overlay is not None for one in judge_overlays(replace(log, corrected=noise.astype(np.int16))))
    assert kept == 0


def test_few_corrections_are_not_enough() -> None:
    assert judge_overlays(mixed(0, count=60)) == ()


def test_unrated_requests_keep_few_corrections_from_moving_a_category() -> None:
    assert verdicts(judge_overlays(corrected_only(0, share=0.6))) == {"a": "new"}
    assert verdicts(judge_overlays(corrected_only(0, share=0.12, count=1800))) == {"a": "not better"}


def test_requests_without_a_key_share_no_overlay() -> None:
    assert verdicts(judge_overlays(replace(mixed(0), tenants=("", "b")))) == {"b": "not better"}


def test_one_tenants_feedback_changes_no_other_tenants_overlay() -> None:
    log = mixed(0)
    flooded = replace(log, corrected=np.where(log.tenant == 1, LAW, log.corrected).astype(np.int16))
    assert head_of(flooded).to_json() == head_of(log).to_json()


def test_an_overlay_that_helps_stays_as_it_is() -> None:
    head = head_of(corrected_only(0, share=0.6))
    log, plain = later(rated_experience(600, seed=5, tenants=("a", "b")), head, back=0.02)
    (tried,) = judge_overlays(log, plain, in_use={"a": head})
    assert (tried.verdict, tried.overlay) == ("kept", head)


def test_an_overlay_that_its_tenant_corrects_back_is_dropped() -> None:
    head = head_of(corrected_only(0, share=0.6))
    log, plain = later(rated_experience(600, seed=5, tenants=("a", "b")), head, back=0.6)
    (tried,) = judge_overlays(log, plain, in_use={"a": head})
    assert (tried.verdict, tried.overlay) == ("dropped", None)
    assert "corrected" in tried.sentence


def test_an_overlay_is_refitted_after_its_tenants_requests_have_doubled() -> None:
    head = head_of(corrected_only(0, share=0.6, count=400))
    (tried,) = judge_overlays(corrected_only(0, share=0.6, count=900), in_use={"a": head})
    assert tried.verdict == "refitted"
    assert tried.overlay is not None
    assert tried.overlay.requests > 2 * head.requests


def test_a_tenant_without_requests_keeps_its_overlay() -> None:
    head = head_of(mixed(0))
    log = rated_experience(300, seed=1, tenants=("b", "c"))
    assert [(one.tenant, one.verdict, one.overlay) for one in judge_overlays(log, in_use={"a": head})] == [
        ("a", "kept", head)
    ]


def test_the_routers_own_posterior_is_collected_where_an_overlay_changed_it() -> None:
    served, own = {"code": 0.1, "general": 0.0, "law": 0.9}, {"code": 0.9, "general": 0.0, "law": 0.1}
    page = (record("one"), record("two", probabilities=served, router_probabilities=own, overlay="v"))
    plain = RouterPosteriors(CATEGORIES)
    log = load_experience(observed([page], plain.add), [], categories=CATEGORIES, experts=EXPERTS).experience
    assert log.posterior.argmax(axis=1).tolist() == [CODE, LAW]
    np.testing.assert_allclose(plain.of(log), [[0.8, 0.1, 0.1], [0.9, 0.0, 0.1]], atol=1e-6)


def test_an_overlay_is_the_same_after_saving() -> None:
    head = head_of(mixed(0))
    back = Overlay.from_json(head.to_json())
    assert back.to_json() == head.to_json()
    np.testing.assert_array_equal(back.weights, head.weights)


@pytest.mark.parametrize("data", [b"{", b"{}", b"[]", b'{"version": 2}'])
def test_anything_else_is_an_error_with_a_remedy(data: bytes) -> None:
    with pytest.raises(ArtifactError, match="retrain"):
        Overlay.from_json(data)


def test_weights_of_another_size_are_refused() -> None:
    odd = Overlay("a", CATEGORIES, np.eye(2), np.zeros(2), 0.1)
    with pytest.raises(ArtifactError, match="3 categories"):
        Overlay.from_json(odd.to_json())
