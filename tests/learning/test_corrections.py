"""Corrections: which ones join the router's training set, and how many of each tenant."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coe.learning import log_frame
from coe.learning.experience import load_experience
from coe.learning.log_frame import frame_of
from coe.learning.router_round import MIN_QUOTA, Correction, corrections, merge_corrections
from coe.records.record import Feedback
from tests.learning.samples import CATEGORIES, EXPERTS, record

BASE = [(f"code prompt {i}", "code") for i in range(60)] + [(f"law prompt {i}", "law") for i in range(10)]


def many(count: int, category: str, tenant: str) -> list[Correction]:
    return [Correction(f"{tenant} {category} {i}", category, tenant) for i in range(count)]


def test_a_corrected_request_with_a_stored_prompt_becomes_a_training_prompt() -> None:
    records = [record("r1", prompt="is this contract void?"), record("r2"), record("r3", prompt="never corrected")]
    corrected = [Feedback(f"e{r}", r, 1.0, "category", "law", tenant="a") for r in ("r1", "r2")]
    found = load_experience(frame_of([records], [corrected]), categories=CATEGORIES, experts=EXPERTS)
    made = corrections(found)
    assert made == (Correction("is this contract void?", "law", "a"),)
    assert merge_corrections(BASE, made).pairs == (*BASE, ("is this contract void?", "law"))


def test_what_the_gateway_notes_by_itself_takes_no_place_of_a_correction(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_frame, "MAX_TEXTS", 2)
    records = [record(f"r{number}", prompt=f"prompt {number}") for number in range(9)]
    events = [Feedback("e", "r0", 1.0, "category", "law", tenant="a")]
    events += [Feedback(f"e{one.request_id}", one.request_id, 1.0, "regenerated", tenant="a") for one in records[1:]]
    found = load_experience(frame_of([records], [events]), categories=CATEGORIES, experts=EXPERTS)
    assert corrections(found) == (Correction("prompt 0", "law", "a"),)


def test_most_tenants_decide_and_a_tie_decides_nothing() -> None:
    corrected = [
        Correction("x", "law", "a"),
        Correction("x", "law", "b"),
        Correction("x", "code", "c"),
        Correction("y", "law", "a"),
        Correction("y", "code", "b"),
    ]
    found = merge_corrections(BASE, corrected)
    assert found.pairs[len(BASE) :] == (("x", "law"),)
    assert found.left_out == {"tenants contradict each other": 1}


def test_the_base_is_never_contradicted() -> None:
    found = merge_corrections(BASE, [Correction("code prompt 3", "law", "a")])
    assert found.pairs == tuple(BASE)
    assert found.left_out == {"the base knows the prompt": 1}


def test_corrections_do_not_outnumber_the_base_of_a_category() -> None:
    corrected = [one for tenant in "abcd" for one in many(30, "code", tenant)]
    assert len(merge_corrections(BASE, corrected).added) == 60
    assert len(merge_corrections(BASE, [one for t in "abcd" for one in many(30, "law", t)]).added) == MIN_QUOTA


def test_one_tenant_adds_at_most_as_many_corrections_as_all_others() -> None:
    found = merge_corrections(BASE, many(55, "code", "loud") + many(25, "code", "quiet"))
    assert sum(prompt.startswith("loud") for prompt, _ in found.pairs) == 25
    assert found.left_out == {"more than the category or the tenant may bring": 30}


@given(st.permutations([*many(6, "code", "a"), *many(6, "law", "b"), Correction("x", "law", "a")]))
def test_the_order_of_corrections_does_not_matter(corrected: list[Correction]) -> None:
    assert merge_corrections(BASE, corrected) == merge_corrections(BASE, sorted(corrected, key=lambda one: one.prompt))
