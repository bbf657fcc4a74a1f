"""The gate's learning round: trials from the log shift the gate within bounds, and are judged as plans are."""

from __future__ import annotations

import numpy as np
import pytest

from coe.learning.log_frame import frame_of
from coe.learning.rounds.gate_round import GateTrials, fit_shift, judge_gate, rated_trials, with_shift
from coe.records.feedback import Feedback
from coe.records.record import RoutingRecord
from tests.records.samples import record
from tests.retrieval.gates import CATEGORIES, EXPERTS, gate_of

VERSION, BAR = "g1", 0.05


def log(
    count: int, *, effect: dict[str, float], gain: float = 0.0, seed: int = 0, flipped: str = ""
) -> tuple[list[RoutingRecord], list[Feedback]]:
    """Requests of each category in turn, to the generalist. Half of the answers without passages are good; passages
    change that share by the effect of the category. Feedback of tenant `flipped` says the opposite."""
    random, records, events = np.random.default_rng(seed), [], []
    for number in range(count):
        category, given = CATEGORIES[number % 3], bool(random.random() < 0.5)
        good = float(random.random() < 0.5 + effect.get(category, 0.0) * given)
        tenant = ("a", "b", "c", "d")[number // 3 % 4]
        one = record(
            number,
            category=category,
            expert="generalist",
            candidates=("generalist",),
            probabilities={name: 0.9 if name == category else 0.05 for name in CATEGORIES},
            retrieval="used" if given else "withheld",
            trial=VERSION,
            gain=gain,
            tenant=tenant,
        )
        records.append(one)
        score = 1 - good if tenant == flipped else good
        events.append(Feedback(f"e{number}", one.request_id, one.time, "score", score, tenant=tenant))
    return records, events


def trials_of(records: list[RoutingRecord], events: list[Feedback]) -> GateTrials:
    frame = frame_of([records[:7], records[7:]], [events])
    return rated_trials(frame, VERSION, categories=CATEGORIES, experts=EXPERTS)


def test_a_gate_learns_to_open_only_where_passages_help() -> None:
    trials = trials_of(*log(3000, effect={"art": 0.45, "code": -0.4}))
    shift = fit_shift(trials)
    art, code = (shift[CATEGORIES.index(name), EXPERTS.index("generalist")] for name in ("art", "code"))
    assert art > 0.2
    assert code < -0.2
    assert np.abs(shift[:, : EXPERTS.index("generalist")]).max() < 1e-9
    judgement = judge_gate(trials, threshold=BAR, round_=1, guarded=CATEGORIES)
    assert judgement.promote, judgement.sentence
    gate = gate_of(-9.0)
    new = with_shift(gate, trials)
    posterior = np.array([0.05, 0.9, 0.05])
    assert gate.estimate_fast(posterior).gain[2] < BAR < new.estimate_fast(posterior).gain[2]
    assert new.estimate_fast(posterior[[1, 0, 2]]).gain[2] < 0
    assert judge_gate(trials, threshold=BAR, round_=1).promote


def test_where_passages_change_nothing_no_gate_is_promoted() -> None:
    for seed in range(8):
        trials = trials_of(*log(900, effect={}, gain=0.0, seed=seed))
        assert not judge_gate(trials, threshold=BAR, round_=1).promote
        assert np.abs(fit_shift(trials)).max() < 0.15


def test_effects_that_the_gate_expected_change_nothing() -> None:
    trials = trials_of(*log(3000, effect=dict.fromkeys(CATEGORIES, 0.4), gain=0.4))
    assert np.abs(fit_shift(trials)).max() < 0.1
    judgement = judge_gate(trials, threshold=BAR, round_=1)
    assert (judgement.promote, judgement.reason) == (False, "not better")


def test_a_tenant_that_contradicts_the_others_does_not_decide() -> None:
    trials = trials_of(*log(3000, effect={"art": 0.45}, flipped="c"))
    assert fit_shift(trials)[CATEGORIES.index("art"), EXPERTS.index("generalist")] > 0.1


@pytest.mark.parametrize(
    "changes", [{"trial": "another"}, {"trial": ""}, {"gain": None}, {"reason": "fallback"}, {"outcome": "dead"}]
)
def test_trials_of_another_gate_are_left_out(changes: dict[str, object]) -> None:
    records, events = log(300, effect={})
    records[0] = record(0, **{"expert": "generalist", "trial": VERSION, "gain": 0.0, "tenant": "a", **changes})
    assert len(trials_of(records, events)) == 299
