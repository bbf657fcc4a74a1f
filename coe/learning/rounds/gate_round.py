"""The learning round of the retrieval gate: fits a shift of its gains to rated trials and judges it.

A trial is a request for which a fair coin decided whether the passages found were added. Only randomization makes
answers with and without passages comparable, since the questions for which the gate opens differ in more than the
passages. The centred reward, doubled and signed by the coin, is an unbiased estimate of the effect (Horvitz and
Thompson 1952). The part that the gate did not expect becomes a shift by expert, and by category and expert, shrunk
towards 0.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from coe.artifacts.kinds import GATE
from coe.errors import DataError
from coe.learning import promotion
from coe.learning.experience import Experience, load_experience
from coe.learning.log_frame import LogFrame, indices, numbers
from coe.learning.off_policy import FOLDS, BanditLog, fold_indices
from coe.learning.promotion import Judgement, logged_evidence
from coe.learning.refit import agreements, trust_of
from coe.learning.rounds.round import Candidate, Job, ManifestFields, RoundState
from coe.retrieval.gate import GATE_FILE, Array, Gate, GateThresholds

MIN_TRIALS = 200
"""Rated trials that a round needs."""
EXPERT_PRIOR_DEVIATION, PAIR_PRIOR_DEVIATION = 0.1, 0.1
"""Prior standard deviations of an expert's shift, and of its additional shift in one category."""
PSEUDO_COUNT = 10.0
"""Trials with the overall mean reward that are added to each expert's own."""
BINS = 5
"""Bins of equal count in the report."""
ARMS = ("withheld", "used")
"""The arms of a trial: passages withheld or added."""


@dataclass(frozen=True, slots=True, eq=False)
class GateTrials:
    """n rated trials of the gate. `given` (n,) is True where passages were added, `gain` (n,) is the gain that the gate
    expected of them."""

    rated: Experience
    given: NDArray[np.bool_]
    gain: Array

    def __len__(self) -> int:
        return len(self.given)

    def part(self, rows: NDArray[np.bool_]) -> GateTrials:
        return GateTrials(self.rated.part(rows), self.given[rows], self.gain[rows])


def rated_trials(frame: LogFrame, version: str, *, categories: Sequence[str], experts: Sequence[str]) -> GateTrials:
    """The rated trials of one version of the gate, by trusted tenants. Raises DataError where it has no trial.

    Trials that another expert answered than the gate judged do not count.
    """
    table = frame.table
    of_version = (indices(table["trial"], (version,)) >= 0) & np.isfinite(numbers(table["gain"]))
    loaded = load_experience(
        frame.part(of_version & (indices(table["reason"], ("fallback",)) < 0)), categories=categories, experts=experts
    )
    is_rated = loaded.experience.rated
    rated = loaded.experience.part(is_rated)
    trusted = trust_of(rated, agreements(rated)) == 1.0
    table = loaded.frame.table.filter(is_rated)
    given = indices(table["retrieval"], ARMS) == ARMS.index("used")
    return GateTrials(rated, given, numbers(table["gain"])).part(trusted)


def fit_shift(trials: GateTrials) -> Array:
    """The shift of the gain, shape (m, k): ridge regression of the effect beyond the expected gain."""
    rated = trials.rated
    m, k = len(rated.categories), len(rated.experts)
    residual = _estimated_effect(trials) - trials.gain
    rows = np.arange(len(trials))
    cells = np.zeros((len(trials), k, 1 + m))
    cells[rows, rated.chosen, 0] = EXPERT_PRIOR_DEVIATION
    cells[rows, rated.chosen, 1:] = PAIR_PRIOR_DEVIATION * rated.posterior
    design = cells.reshape(len(trials), -1)
    gram = design.T @ design + float(np.mean(residual**2)) * np.eye(design.shape[1])
    found = np.linalg.solve(gram, design.T @ residual).reshape(k, 1 + m)
    return np.asarray((EXPERT_PRIOR_DEVIATION * found[:, :1] + PAIR_PRIOR_DEVIATION * found[:, 1:]).T)


def judge_gate(trials: GateTrials, *, threshold: float, round_: int, guarded: Sequence[str] = ()) -> Judgement:
    """Test whether the shifted gate earns more than the gate in use, net of the price `threshold` of passages.

    Each trial is judged by a shift that was fitted without its fold.
    """
    rated, fold = trials.rated, fold_indices(len(trials))
    gains = trials.gain.copy()
    for held in range(FOLDS):
        shift, is_held = fit_shift(trials.part(fold != held)), fold == held
        part = rated.part(is_held)
        gains[is_held] += (part.posterior @ shift)[np.arange(len(part)), part.chosen]
    likeliest = [rated.categories[index] for index in rated.posterior.argmax(axis=1)]
    old, new = (np.eye(2)[(gain > threshold).astype(int)] for gain in (trials.gain, gains))
    evidence = logged_evidence(_logged_arms(trials, threshold), old, new, likeliest, guarded=guarded)
    return promotion.judge([evidence], round_=round_)


def with_shift(gate: Gate, trials: GateTrials) -> Gate:
    """The gate with the shift that all trials give. Experts that the gate has not measured stay unmeasured."""
    ordered = gate.align(trials.rated.categories, trials.rated.experts)
    return replace(ordered, shift=(ordered.shift + fit_shift(trials)) * ordered.measured)


def _estimated_effect(trials: GateTrials) -> Array:
    """Unbiased estimates of the effect of passages, shape (n,); each alone is mostly noise."""
    rated, reward = trials.rated, trials.rated.reward.astype(np.float64)
    sums, counts = (np.bincount(rated.chosen, weights=w, minlength=len(rated.experts)) for w in (reward, None))
    mean = (sums + PSEUDO_COUNT * reward.mean()) / (counts + PSEUDO_COUNT)
    return np.asarray(2 * np.where(trials.given, 1, -1) * (reward - mean[rated.chosen]))


def _logged_arms(trials: GateTrials, threshold: float) -> BanditLog:
    """The trials as logged choices between two arms with equal probability; added passages cost their price."""
    count = len(trials)
    arms = replace(
        trials.rated,
        experts=ARMS,
        chosen=trials.given.astype(np.int16),
        allowed=np.ones((count, 2), dtype=bool),
        propensity=np.full(count, 0.5, dtype=np.float32),
    )
    log = BanditLog.of(arms)
    price = np.array([0.0, threshold])
    return replace(log, reward=log.reward - threshold * trials.given, modelled=log.modelled - price)


def judge(job: Job) -> Candidate | str | None:
    """Judge a shifted gate. Needs a declared document store, a gate over the router's categories, and trials of that
    gate in the log."""
    artifact = job.store(GATE).current()
    if job.registry.retrieval.store is None or artifact is None:
        return None
    version, categories = artifact.manifest.version, job.in_use.router.categories
    gate = Gate.load(artifact.folder / GATE_FILE)
    if set(gate.categories) != set(categories):
        return None
    try:
        trials = rated_trials(job.frame, version, categories=categories, experts=job.registry.expert_names)
    except DataError:  # the log has no trial of this version
        return None
    if len(trials) < MIN_TRIALS:
        return f"{len(trials)} trials are rated, and a round takes {MIN_TRIALS}"
    rated = trials.rated
    inputs = hashlib.sha256(rated.time.tobytes() + rated.reward.tobytes()).hexdigest()[:16]
    tests = job.tests_so_far(GATE, in_use=version, inputs=inputs)
    if tests is None:
        return "no trial is new"
    threshold = GateThresholds.of(gate.cost, job.registry.retrieval.price).insert
    judgement = judge_gate(trials, threshold=threshold, round_=tests + 1, guarded=job.registry.category_names)
    effect, shifted = _estimated_effect(trials), with_shift(gate, trials)
    report = {
        **judgement.to_json(),
        "trials": len(trials),
        "given": int(trials.given.sum()),
        "gain": [  # the effect of passages, by bins of the gain that the gate expected
            {"count": len(rows), "expected": float(trials.gain[rows].mean()), "seen": float(effect[rows].mean())}
            for rows in np.array_split(np.argsort(trials.gain, kind="stable"), BINS)
        ],
    }

    def save(folder: Path) -> ManifestFields:
        shifted.save(folder / GATE_FILE)
        return {"categories": shifted.categories, "data": inputs, "metrics": report}

    return Candidate(
        RoundState.of(judgement, in_use=version, inputs=inputs, time=job.now),
        replaces=version,
        report=report,
        save=save,
    )
