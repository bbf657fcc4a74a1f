"""Proposes cascades and votes from recorded answers: which members, in which order, at which price of cost.

For each price, a beam search inserts the member that raises mean quality net of cost most, at any position, up to the
largest number of calls; then it moves and drops single members. The search ignores categories; fitted policies do not.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from coe.learning.recipes.fit import AnsweredSet, Answers, answered_set, held_out_probabilities, stop_backwards

MAX_CANDIDATES = 16
"""Experts that the search considers: the best ones by quality net of cost at the price, and the cheapest ones."""
BEAM_WIDTH = 3
"""Sequences that the search extends at the same time."""

Sequence = tuple[int, ...]
"""Columns of members in the order of their calls."""


class RecipeSearch:
    """Searches member sequences on one table of answers.

    What follows from the answers of a set of members does not depend on their order, so it is estimated once for all
    sequences and prices.
    """

    def __init__(self, answers: Answers, *, max_calls: int) -> None:
        self._answers, self._max_calls = answers, max_calls
        self._sets: dict[frozenset[int], AnsweredSet] = {}

    def best_sequence(self, price: float) -> Sequence:
        """Return the best sequence at a price per unit of cost; it has one member if no recipe pays."""
        candidates = self._candidates(price)
        beam: list[Sequence] = [()]
        best: Sequence = (candidates[0],)
        best_value = -np.inf
        for _ in range(min(self._max_calls, len(candidates))):
            values = self._values({grown for started in beam for grown in _insertions(started, candidates)}, price)
            beam = sorted(values, key=lambda sequence: -values[sequence])[:BEAM_WIDTH]
            if values[beam[0]] > best_value:
                best, best_value = beam[0], values[beam[0]]
        return self._improve(best, best_value, price)

    def _improve(self, best: Sequence, best_value: float, price: float) -> Sequence:
        """Move or drop single members as long as that raises the value."""
        while values := self._values(_moves(best), price):
            found = max(values, key=lambda sequence: values[sequence])
            if values[found] <= best_value:
                break
            best, best_value = found, values[found]
        return best

    def _candidates(self, price: float) -> list[int]:
        """Return the experts of highest mean quality net of cost at several prices up to this one."""
        scores, costs = self._answers.scores.mean(axis=0), self._answers.costs.mean(axis=0)
        ranks = [np.argsort(-(scores - factor * price * costs)) for factor in (1.0, 0.0, 3.0)]
        found = dict.fromkeys(int(column) for column in np.column_stack(ranks).ravel())
        return list(found)[:MAX_CANDIDATES]

    def _values(self, sequences: Iterable[Sequence], price: float) -> dict[Sequence, float]:
        return {sequence: self._value(sequence, price) for sequence in sequences}

    def _value(self, sequence: Sequence, price: float) -> float:
        scores = self._answers.scores
        answered = [
            self._answered(sequence[: length + 1]).latest(scores[:, column]) for length, column in enumerate(sequence)
        ]
        costs = [self._answers.costs[:, column] for column in sequence]
        return stop_backwards(answered, costs, [1] * len(sequence), price=price).net(price)

    def _answered(self, members: Sequence) -> AnsweredSet:
        key = frozenset(members)
        if key not in self._sets:
            columns = sorted(key)
            probabilities = held_out_probabilities(self._answers, columns, by_category=False)
            self._sets[key] = answered_set(self._answers, columns, probabilities, latest=0)
        return self._sets[key]


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
