"""Proposes cascades and votes from recorded answers: which members, in which order, at which price.

A price is the quality that one unit of cost must add. For each price, a beam search inserts the member that raises mean
quality net of cost most, at any position, up to the largest number of calls. Then single members of its sequence are
moved or dropped. The search ignores categories; fitted policies do not.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from coe.recipes.agreement import Array
from coe.recipes.fitting.agreement_weights import fold_probabilities, fold_weights
from coe.recipes.fitting.answers import Answers
from coe.recipes.fitting.fit import AnsweredSet, answered_set, stop_backwards

MAX_CANDIDATES = 16
"""Experts that the search considers: the best ones by quality net of cost at the price, and the cheapest ones."""
BEAM_WIDTH = 3
"""Sequences that the search extends at the same time."""
MIN_GAIN = 1e-12
"""Mean gain below which a change is rounding."""
Sequence = tuple[int, ...]
"""Columns of the answers in the order of their members' calls."""


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
        best = self._extended(price)
        value = float(self._net(best, price).mean())
        while True:
            values = self._values(_moves(best), price)
            if not values or max(values.values()) <= value + MIN_GAIN:
                return best
            best = max(values, key=lambda sequence: values[sequence])
            value = values[best]

    def _extended(self, price: float) -> Sequence:
        """Return the best sequence that the beam search finds."""
        candidates = self._candidates(price)
        beam: list[Sequence] = [()]
        best: Sequence = (candidates[0],)
        best_value = -np.inf
        for _ in range(min(self._max_calls, len(candidates))):
            values = self._values({grown for started in beam for grown in _insertions(started, candidates)}, price)
            beam = sorted(values, key=lambda sequence: -values[sequence])[:BEAM_WIDTH]
            if values[beam[0]] > best_value:
                best, best_value = beam[0], values[beam[0]]
        return best

    def _candidates(self, price: float) -> list[int]:
        """Return the experts of highest mean quality net of cost at several prices up to this one."""
        scores, costs = self._answers.scores.mean(axis=0), self._answers.costs.mean(axis=0)
        ranks = [np.argsort(-(scores - factor * price * costs)) for factor in (1.0, 0.0, 3.0)]
        found = dict.fromkeys(int(column) for column in np.column_stack(ranks).ravel())
        return list(found)[:MAX_CANDIDATES]

    def _values(self, sequences: Iterable[Sequence], price: float) -> dict[Sequence, float]:
        return {sequence: float(self._net(sequence, price).mean()) for sequence in sequences}

    def _net(self, sequence: Sequence, price: float) -> Array:
        """Return the quality net of cost, shape (n_prompts,)."""
        answers = self._answers
        answered = [
            self._answered(sequence[: length + 1]).latest(answers.scores[:, column])
            for length, column in enumerate(sequence)
        ]
        costs = [answers.costs[:, column] for column in sequence]
        outcome = stop_backwards(answered, costs, [1] * len(sequence), price=price)
        return outcome.scores - price * outcome.costs

    def _answered(self, members: Sequence) -> AnsweredSet:
        key = frozenset(members)
        if key not in self._sets:
            columns = sorted(key)
            probabilities = fold_probabilities(self._answers, columns, fold_weights(self._answers, columns))
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
