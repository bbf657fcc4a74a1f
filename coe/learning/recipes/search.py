"""Proposes cascades and votes from recorded answers: which members, in which order, at which price.

A price is the quality that one unit of cost must add. For each price, a beam search inserts the member that raises mean
quality net of cost most, at any position, up to the largest number of calls. Then single members of its sequence, and
of the one found at the price before, are moved, dropped or capped. The search ignores categories; fitted policies do
not.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from coe.experts.recipes.agreement import Array
from coe.learning.recipes.agreement_weights import fold_probabilities, fold_weights
from coe.learning.recipes.answers import Answers
from coe.learning.recipes.fit import AnsweredSet, answered_set, stop_backwards

MAX_CANDIDATES = 16
"""Experts that the search considers: the best ones by quality net of cost at the price, and the cheapest ones."""
BEAM_WIDTH = 3
"""Sequences that the search extends at the same time."""
MIN_GAIN = 1e-12
"""Mean gain below which a change is rounding."""
CAP_QUANTILES = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.975, 0.99)
"""Caps that the search considers for a member: these quantiles of the lengths of its answers, if they were counted."""

Sequence = tuple[int, ...]
"""Columns (`RecipeSearch`) in the order of their members' calls."""


class RecipeSearch:
    """Searches member sequences on one table of answers.

    What follows from the answers of a set of members does not depend on their order. So it is estimated once for all
    sequences and prices, and answer weights once for all caps. The columns are the experts without a cap, and behind
    them the experts with the caps of each level in turn. `n_experts` columns make a level.
    """

    def __init__(self, answers: Answers, *, max_calls: int) -> None:
        self._answers, self._max_calls = answers, max_calls
        self._experts = len(answers.experts)
        levels = np.ceil(np.quantile(answers.tokens, CAP_QUANTILES, axis=0))
        self.caps: Array = np.concatenate((np.full(self._experts, np.inf), levels.ravel()))
        uncapped = answers.columns(list(range(self._experts)) * (1 + len(CAP_QUANTILES)))
        self._cut_off = uncapped.tokens > self.caps
        self._columns = uncapped.capped(self.caps, np.ones(uncapped.tokens.shape, dtype=bool))
        counted = np.tile(np.array(answers.counted or (True,) * self._experts), 1 + len(CAP_QUANTILES))
        self._offered = counted & (self._columns.costs.mean(axis=0) < uncapped.costs.mean(axis=0))
        """The columns that save cost, of lengths that were counted: a cap from characters would cut off any model that
        reasons, whose answers do not show these tokens."""
        self._offered[: self._experts] = True
        self._sets: dict[frozenset[int], AnsweredSet] = {}
        self._weights: dict[frozenset[int], Array] = {}

    def expert(self, column: int) -> int:
        """Return the expert of a column."""
        return column % self._experts

    def best_sequence(self, price: float, *, also: Sequence = ()) -> Sequence:
        """Return the best sequence at a price per unit of cost; it has one member if no recipe pays.

        `also` is another sequence to improve, such as the best one at a higher price. Often only several caps together
        make a cascade better than its large member, and at the higher price each of them paid alone.
        """
        starts = dict.fromkeys(start for start in (self._extended(price), also) if start)
        improved = [self._improve(start, price) for start in starts]
        best = max(improved, key=lambda sequence: float(self._net(sequence, price).mean()))
        self._sets = {key: found for key, found in self._sets.items() if max(key) < self._experts}
        return best

    def _extended(self, price: float) -> Sequence:
        """Return the best sequence without caps that the beam search finds."""
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

    def _improve(self, best: Sequence, price: float) -> Sequence:
        """Move or drop single members, or change their caps, as long as that raises the value.

        A lower cap has to raise it by more than a standard error: there are many caps, and the best of them by chance
        would cost quality where hardly any cost is to be saved.
        """
        net = self._net(best, price)
        while True:
            found = {sequence: self._net(sequence, price) - net for sequence in _moves(best) | self._other_caps(best)}
            raised = {
                sequence: gain for sequence, gain in found.items() if gain.mean() > self._needed(sequence, best, gain)
            }
            if not raised:
                return best
            best = max(raised, key=lambda sequence: float(raised[sequence].mean()))
            net = self._net(best, price)
            self._forget_sets_far_from(best)

    def _forget_sets_far_from(self, best: Sequence) -> None:
        """Drop the sets with caps that no single change of `best` needs, as there are many, and each one is large."""
        near = set(best)
        self._sets = {
            key: found for key, found in self._sets.items() if max(key) < self._experts or len(key - near) < 2
        }

    def _needed(self, sequence: Sequence, best: Sequence, gain: Array) -> float:
        """Return the mean gain that a change needs: a standard error of it for a lower cap."""
        lower = len(sequence) == len(best) and (self.caps[list(sequence)] < self.caps[list(best)]).any()
        same = [*map(self.expert, sequence)] == [*map(self.expert, best)]
        return float(gain.std() / np.sqrt(len(gain))) if lower and same else MIN_GAIN

    def _candidates(self, price: float) -> list[int]:
        """Return the experts of highest mean quality net of cost at several prices up to this one."""
        scores, costs = self._answers.scores.mean(axis=0), self._answers.costs.mean(axis=0)
        ranks = [np.argsort(-(scores - factor * price * costs)) for factor in (1.0, 0.0, 3.0)]
        found = dict.fromkeys(int(column) for column in np.column_stack(ranks).ravel())
        return list(found)[:MAX_CANDIDATES]

    def _values(self, sequences: Iterable[Sequence], price: float) -> dict[Sequence, float]:
        return {sequence: float(self._net(sequence, price).mean()) for sequence in sequences}

    def _other_caps(self, sequence: Sequence) -> set[Sequence]:
        """Return the sequences with another cap of one member; a single member has none."""
        if len(sequence) == 1:
            return set()
        return {
            (*sequence[:position], other, *sequence[position + 1 :])
            for position, column in enumerate(sequence)
            for other in range(self.expert(column), len(self.caps), self._experts)
            if other != column and self._offered[other]
        }

    def _net(self, sequence: Sequence, price: float) -> Array:
        """Return the quality net of cost, shape (n_prompts,). A sequence of one member has no cap."""
        if len(sequence) == 1:
            sequence = (self.expert(sequence[0]),)
        columns, last = self._columns, sequence[-1]
        answered = [
            self._answered(sequence[: length + 1]).latest(columns.scores[:, column], self._cut_off[:, column])
            for length, column in enumerate(sequence)
        ]
        costs = [columns.costs[:, column] for column in sequence]
        if len(sequence) > 1:  # the last member has no cap where no earlier answer is readable
            whole, is_whole = self.expert(last), answered[-2].unreadable
            costs[-1] = np.where(is_whole, columns.costs[:, whole], costs[-1])
            answered[-1] = answered[-1].latest(columns.scores[:, whole], self._cut_off[:, whole])
        outcome = stop_backwards(answered, costs, [1] * len(sequence), price=price)
        return outcome.scores - price * outcome.costs

    def _answered(self, members: Sequence) -> AnsweredSet:
        key = frozenset(members)
        if key not in self._sets:
            columns = sorted(key, key=self.expert)
            self._sets[key] = answered_set(self._columns, columns, self._probabilities(columns), latest=0)
        return self._sets[key]

    def _probabilities(self, columns: list[int]) -> Array:
        """Return the held-out answer probabilities of some members, by weights of their answers without caps."""
        experts = [self.expert(column) for column in columns]
        key = frozenset(experts)
        if key not in self._weights:
            self._weights[key] = fold_weights(self._answers, experts)
        return fold_probabilities(self._columns, columns, self._weights[key])


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
