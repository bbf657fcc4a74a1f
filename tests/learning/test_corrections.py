"""Corrections: which ones count, and how many of each API key."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coe.learning import log_frame
from coe.learning.log_frame import frame_of
from coe.learning.router_round import MIN_QUOTA, Correction, choose_corrections
from coe.records.record import Feedback
from coe.registry import Registry
from tests.learning.samples import record

KEYS = [{"name": name, "sha256": f"{number:064x}"} for number, name in enumerate(("a", "b", "c"))]


def registry() -> Registry:
    keys: list[dict[str, Any]] = [*KEYS, {"name": "operator", "sha256": "9" * 64, "scopes": ["chat", "admin"]}]
    return Registry.model_validate(
        {
            "version": 1,
            "categories": [{"name": name, "description": name} for name in ("code", "general", "law")],
            "experts": [{"name": "small", "model": "m", "runtime": "external", "base_url": "http://127.0.0.1:9/v1"}],
            "assignment": {"general": "small"},
            "access": {"keys": keys},
        }
    )


def correction(prompt: str, category: str, key: str | None, *, time: float = 0.0) -> Correction:
    event = Feedback(f"{prompt} {category} {key} {time}", "r", time, "category", category, key=key)
    return Correction(prompt, "general", event)


def chosen(*corrected: Correction) -> tuple[set[tuple[str, str]], dict[str, int]]:
    found, left_out = choose_corrections(corrected, registry())
    return {(one.prompt, one.category) for one in found}, dict(left_out)


def many(count: int, key: str | None) -> list[Correction]:
    return [correction(f"{key} {number}", "law", key, time=number) for number in range(count)]


def test_each_key_has_one_vote_for_a_prompt_and_a_tie_decides_nothing() -> None:
    votes = [correction("x", "code", "c", time=number) for number in range(5)]
    votes += [correction("x", "law", "a", time=5), correction("x", "law", "b", time=6)]
    votes += [correction("y", "law", "a"), correction("y", "code", "b"), correction("z", "code", "a")]
    votes += [correction("z", "law", "a", time=1), correction("", "law", "a"), correction("v", "gone", "a")]
    found, left_out = chosen(*votes)
    assert found == {("x", "law"), ("z", "law")}
    assert left_out == {
        "keys contradict each other": 1,
        "without a prompt in the log (log.store_prompts)": 1,
        "of a category that is not declared": 1,
    }


@pytest.mark.parametrize(("others", "kept"), [(0, MIN_QUOTA), (30, 30)])
def test_one_key_brings_its_newest_and_at_most_as_many_as_all_others(others: int, kept: int) -> None:
    found, left_out = chosen(*many(50, "a"), *many(others // 2, "b"), *many(others // 2, "c"))
    assert {prompt for prompt, _ in found if prompt.startswith("a")} == {f"a {n}" for n in range(50 - kept, 50)}
    assert left_out == {"more than a key, or all of them, may bring": 50 - kept}


@pytest.mark.parametrize("key", ["operator", None])
def test_operators_and_a_gateway_without_keys_have_no_quota(key: str | None) -> None:
    assert len(chosen(*many(50, key))[0]) == 50


@given(st.permutations([*many(25, "a"), *many(3, "b"), correction("b 1", "code", "c")]))
def test_the_order_of_corrections_does_not_matter(corrected: list[Correction]) -> None:
    assert chosen(*corrected) == chosen(*sorted(corrected, key=lambda one: one.prompt))


def test_a_withdrawn_correction_is_none() -> None:
    events = [
        Feedback("e", "r0", 1.0, "category", "law", tenant="a"),
        Feedback("f", "r0", 2.0, "category", "", tenant="a"),
    ]
    (found,) = frame_of([[record("r0", prompt="x")]], [events]).table["feedback_category"].to_pylist()
    assert found is None


def test_what_the_gateway_notes_by_itself_takes_no_place_of_a_correction(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_frame, "MAX_TEXTS", 2)
    records = [record(f"r{number}", prompt=f"prompt {number}") for number in range(9)]
    events = [Feedback("e", "r0", 1.0, "category", "law", tenant="a")]
    events += [Feedback(f"e{one.request_id}", one.request_id, 1.0, "regenerated", tenant="a") for one in records[1:]]
    assert frame_of([records], [events]).texts == {"r0": "prompt 0"}
