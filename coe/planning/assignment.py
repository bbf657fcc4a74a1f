"""`Assignment`: expected quality and price by category and expert, as `decide()` uses them.

`expected_utility` ranks experts for a posterior; `information_value` is what knowing the true category would gain.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import compress
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, InstanceOf, TypeAdapter

from coe.core import GENERAL, Prediction
from coe.planning.residual import Residual
from coe.planning.score_table import Array, Mask


@dataclass(frozen=True, eq=False)
class Assignment:
    """The expert of each category, with expected quality and price.

    - `quality`, shape (n_categories, n_experts): expected quality (0 to 1), -inf where the expert may not serve the
      category.
    - `price`, shape (n_categories, n_experts): price of one request of the category in units of quality, the sum over
      budget rows of the row's dual times the expert's use.
    - `choice`: the expert of each category.
    - `hosted`: the experts that the plan keeps running.
    - `unmeasured`, shape (n_categories, n_experts), None if empty: experts that may serve the category and were never
      scored. Their quality is -inf, so that only exploration selects them.
    - `exploration`, shape (n_categories, n_experts), None for evenly within the declared loss: the multiple of the
      declared rate at which each expert besides the chosen one is explored (`coe.learning.exploration`).
    - `residual`: what a text says beyond its category, over the same names; None if it does not improve decisions.
    """

    categories: tuple[str, ...]
    experts: tuple[str, ...]
    quality: Array
    price: Array
    choice: tuple[str, ...]
    hosted: tuple[str, ...]
    duals: Mapping[str, float]
    unmeasured: Mask | None = None
    exploration: Array | None = None
    residual: Annotated[InstanceOf[Residual] | None, Field(exclude=True)] = None

    def __post_init__(self) -> None:
        shape = len(self.categories), len(self.experts)
        if not self.quality.shape == self.price.shape == shape or len(self.choice) != shape[0]:
            raise ValueError(f"quality of shape {self.quality.shape}, price of shape {self.price.shape}, not {shape}")
        quality = np.where(np.isnan(self.quality), -np.inf, self.quality)  # null in a file
        for name, array in {"quality": quality, "price": self.price.copy()}.items():
            array.setflags(write=False)
            object.__setattr__(self, name, array)

    @cached_property
    def is_priced(self) -> bool:
        """True if some price is not 0."""
        return bool(self.price.any())

    @cached_property
    def value(self) -> NDArray[np.float64]:
        """Quality minus price; an expert that may not serve a category counts with quality 0."""
        return np.where(np.isfinite(self.quality), self.quality, 0.0) - self.price

    @cached_property
    def _value_of_request(self) -> NDArray[np.float32]:
        return self.value.astype(np.float32)

    @cached_property
    def _exclusion(self) -> NDArray[np.float64] | None:
        """-inf where an expert may not serve the category; None if all may serve all."""
        allowed = np.isfinite(self.quality)
        return None if allowed.all() else np.where(allowed, 0.0, -np.inf)

    @cached_property
    def runners_up(self) -> tuple[tuple[str | None, float], ...]:
        """By category the best expert besides the chosen one, by utility, and the margin, which is its distance.

        A single expert has no runner-up, and its whole utility as margin. A negative margin means that the budget
        forced a second-best expert.
        """
        found = list[tuple[str | None, float]]()
        for utility, name in zip(self.quality - self.price, self.choice, strict=True):
            own = float(utility[self.experts.index(name)])
            others = np.where(np.array(self.experts) == name, -np.inf, utility)
            second = int(others.argmax())
            alone = not np.isfinite(others[second])
            found.append((None, own) if alone else (self.experts[second], float(own - others[second])))
        return tuple(found)

    @property
    def general_expert(self) -> str:
        """The expert or arm that answers `general`, and uncertain requests."""
        return self.choice[self.categories.index(GENERAL)]

    def unmeasured_experts(self, category: int) -> frozenset[str]:
        """Return the experts that may serve the category of this index and were never scored."""
        unmeasured = () if self.unmeasured is None else self.unmeasured[category]
        return frozenset(compress(self.experts, unmeasured))

    def exploration_weights(self, category: int, experts: Sequence[str]) -> NDArray[np.float64] | None:
        """Return the multiples of the exploration rate of some experts; None for evenly within the declared loss."""
        columns = [self.experts.index(name) for name in experts]
        return None if self.exploration is None else self.exploration[category, columns]

    @classmethod
    def declared(
        cls, categories: tuple[str, ...], experts: tuple[str, ...], mapping: Mapping[str, str], general: str
    ) -> Assignment:
        """Return the assignment that experts.yaml declares, without measurements or prices.

        Quality is 1 for the declared expert of a category, 0.01 for the general expert, and 0 for the others. The
        general expert serves the categories that `mapping` leaves out.
        """
        choice = tuple(mapping.get(category, general) for category in categories)
        quality = np.zeros((len(categories), len(experts)))
        quality[:, experts.index(general)] = 0.01
        for row, expert in enumerate(choice):
            quality[row, experts.index(expert)] = 1.0
        return cls(categories, experts, quality, np.zeros(quality.shape), choice, hosted=experts, duals={})

    @property
    def digest(self) -> str:
        """SHA-256 of the assignment as JSON and of its residual, hexadecimal."""
        residual = b"" if self.residual is None else self.residual.to_bytes()
        return hashlib.sha256(_JSON.dump_json(self) + residual).hexdigest()


_JSON = TypeAdapter(Assignment)


def expected_utility(
    assignment: Assignment, posterior: NDArray[np.floating], residual: NDArray[np.floating] | None = None
) -> NDArray[np.floating]:
    """Return expected quality minus price of each expert, shape (n_experts,), for a posterior (n_categories,).

    The `residual` of the text (n_experts,) is added, if it is known (`apply_residual`). An expert that may not serve
    the most likely category gets -inf; in other categories it counts with quality 0. The result has the type of the
    posterior: float32 for a router's, which takes half the time.
    """
    value = assignment._value_of_request if posterior.dtype == np.float32 else assignment.value
    utility: NDArray[np.floating] = posterior.dot(value)
    if (exclusion := assignment._exclusion) is not None:
        utility += exclusion[posterior.argmax()]
    return utility if residual is None else utility + residual


def expected_price(assignment: Assignment, posterior: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the price of each expert, shape (n_experts,), for a posterior (n_categories,)."""
    if not assignment.is_priced:
        return np.zeros(len(assignment.experts))
    price: NDArray[np.float64] = posterior @ assignment.price
    return price


def information_value(
    assignment: Assignment, posterior: NDArray[np.floating], eligible: Sequence[int], *, uncertain: bool
) -> float:
    """Return the expected gain in utility if the true category were known (expected value of perfect information).

    It is at least 0, and limits what any better posterior can gain. Only the experts at the indices `eligible` (at
    least one) count. The gain is over the expert selected for `posterior`, shape (n_categories,). That is the
    one of highest expected utility. If the request is `uncertain`, it is the expert of `general` where it is eligible.
    """
    utility = assignment.value.take(eligible, axis=1)
    general = assignment.experts.index(assignment.general_expert) if uncertain else -1
    if general in eligible:
        selected = eligible.index(general)
    else:
        selected = int(expected_utility(assignment, posterior)[eligible].argmax())
    return float(posterior @ (utility.max(axis=1) - utility[:, selected]))


def routing_gain(assignment: Assignment, eligible: Sequence[int]) -> float:
    """Return what the best expert of each category gains over the best single expert, in mean utility of categories.

    Only the experts at the indices `eligible` (at least one) count.
    """
    utility = assignment.value.take(eligible, axis=1)
    return float(utility.max(axis=1).sum() - utility.sum(axis=0).max()) / len(utility)


def residual_gain(assignment: Assignment, eligible: Sequence[int]) -> NDArray[np.floating]:
    """Return by category what the residual of a text is expected to gain in utility, shape (n_categories,).

    Only the experts at the indices `eligible` (at least one) count. Without a residual the gains are 0.
    """
    if assignment.residual is None:
        return np.zeros(len(assignment.categories))
    return assignment.residual.gain(assignment.value, eligible)


def nearest_measured(assignment: Assignment, prediction: Prediction, experts: Sequence[str]) -> list[dict[str, Any]]:
    """Return the measured prompts nearest to a text, with scores of `experts`; none if no residual counts for it."""
    if assignment.residual is None or prediction.residual is None or prediction.features is None:
        return []
    return assignment.residual.nearest(prediction.features, experts)


def apply_residual(assignment: Assignment, prediction: Prediction) -> Prediction:
    """Return the prediction with the plan's residual of the text, if the encoder has read the text; without a residual
    in the plan, no features are kept."""
    if prediction.features is None:
        return prediction
    if assignment.residual is None:
        return replace(prediction, features=None)
    return replace(prediction, residual=assignment.residual(prediction.features))
