"""Proposes cascades and votes from recorded answers: which members, in which order, at which price.

A price is the quality that one unit of cost must add. For each price, a beam search inserts the member that raises mean
quality net of cost most, at any position, up to the largest number of calls. Then single members of its sequence are
moved or dropped. The search ignores categories; fitted policies do not.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from coe.recipes.fitting.answers import Answers
from coe.recipes.fitting.fit import AnsweredSet, Arm, RecipeFit, fit_stops, fit_weights
from coe.registry.recipes import PROPOSED_PREFIX

SEARCHED_PRICES = (0.2, 0.1, 0.05, 0.035, 0.025, 0.016, 0.01, 0.004, 0.001)
"""Prices at which recipes are proposed: the quality that a call of median cost must add."""
MAX_CANDIDATES = 16
"""Experts that the search considers: the best ones by quality net of cost at the price, and the cheapest ones."""
BEAM_WIDTH = 3
"""Sequences that the search extends at the same time."""
Sequence = tuple[int, ...]
"""Columns of the answers in the order of their members' calls."""


def propose_arms(answers: Answers, *, max_calls: int) -> dict[str, Arm]:
    """Return the arms of the recipes that pay, auto-1, auto-2, ... from the cheapest on; empty if single experts are
    best at every price.

    No two have the same members, so that a recipe that fails is not replaced by one that calls them again.
    """
    search = RecipeSearch(answers, max_calls=max_calls)
    proposed: dict[frozenset[int], Arm] = {}
    for price in (searched / answers.typical_cost for searched in SEARCHED_PRICES):
        sequence = search.best_sequence(price)
        if len(sequence) > 1 and frozenset(sequence) not in proposed:
            proposed[frozenset(sequence)] = RecipeFit(answers, [[member] for member in sequence]).arm(price)
    return {f"{PROPOSED_PREFIX}{number}": arm for number, arm in enumerate(proposed.values(), start=1)}


class RecipeSearch:
    """Searches member sequences on one table of answers.

    What follows from the answers of a set of members does not depend on their order. So it is estimated once for all
    sequences and prices.
    """

    def __init__(self, answers: Answers, *, max_calls: int) -> None:
        self._answers, self._max_calls = answers, max_calls
        self._sets: dict[frozenset[int], AnsweredSet] = {}

    def best_sequence(self, price: float) -> Sequence:
        """Return the best sequence at a price per unit of cost; it has one member if no recipe pays."""
        candidates = self._candidates(price)
        beam: list[Sequence] = [()]
        best: Sequence = ()
        value = -np.inf
        for _ in range(min(self._max_calls, len(candidates))):
            values = self._values({grown for started in beam for grown in _insertions(started, candidates)}, price)
            beam = sorted(values, key=lambda sequence: -values[sequence])[:BEAM_WIDTH]
            if values[beam[0]] > value:
                best, value = beam[0], values[beam[0]]
        while values := self._values(_moves(best), price):
            better = max(values, key=lambda sequence: values[sequence])
            if values[better] <= value:
                break
            best, value = better, values[better]
        return best

    def _candidates(self, price: float) -> list[int]:
        """Return the experts of highest mean quality net of cost at several prices up to this one."""
        scores, costs = self._answers.scores.mean(axis=0), self._answers.costs.mean(axis=0)
        ranks = [np.argsort(-(scores - factor * price * costs)) for factor in (1.0, 0.0, 3.0)]
        found = dict.fromkeys(int(column) for column in np.column_stack(ranks).ravel())
        return list(found)[:MAX_CANDIDATES]

    def _values(self, sequences: Iterable[Sequence], price: float) -> dict[Sequence, float]:
        """Return the mean quality net of cost of each sequence."""
        answers, values = self._answers, {}
        for sequence in sequences:
            states = [
                self._answered(frozenset(sequence[: length + 1])).latest(answers.scores[:, column])
                for length, column in enumerate(sequence)
            ]
            outcome = fit_stops(states, [answers.costs[:, column] for column in sequence], price=price)
            values[sequence] = float((outcome.scores - price * outcome.costs).mean())
        return values

    def _answered(self, members: frozenset[int]) -> AnsweredSet:
        if members not in self._sets:
            answers, columns = self._answers, sorted(members)
            classes = answers.classes[:, columns]
            weights = fit_weights(classes, answers.scores[:, columns], answers.labels, 0)
            probabilities = weights.probabilities(classes, answers.posterior)
            self._sets[members] = AnsweredSet.of(answers, columns, probabilities)
        return self._sets[members]


def _insertions(sequence: Sequence, candidates: list[int]) -> set[Sequence]:
    """Return the sequences with one more member at any position."""
    return {
        (*sequence[:position], column, *sequence[position:])
        for column in candidates
        if column not in sequence
        for position in range(len(sequence) + 1)
    }


def _moves(sequence: Sequence) -> set[Sequence]:
    """Return the sequences with one member moved or dropped."""
    found: set[Sequence] = set()
    for position, column in enumerate(sequence):
        rest = sequence[:position] + sequence[position + 1 :]
        found |= {(*rest[:other], column, *rest[other:]) for other in range(len(sequence))}
        if rest:
            found.add(rest)
    return found - {sequence}
