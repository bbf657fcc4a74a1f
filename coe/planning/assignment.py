"""`Assignment`: expected quality and price by category and expert, as `decide()` uses them.

`expected_utility` ranks experts for a posterior; `information_value` is what knowing the true category would gain.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from coe.core import GENERAL, Prediction
from coe.errors import ArtifactError
from coe.planning.residual import Residual

VERSION = 2
"""Version of the file that `Assignment.to_json` makes."""


@dataclass(frozen=True, slots=True, eq=False)
class Assignment:
    """The expert of each category, with expected quality and price.

    - `quality`, shape (n_categories, n_experts): expected quality (0 to 1), -inf where the expert may not serve the
      category.
    - `price`, shape (n_categories, n_experts): price of one request of the category in units of quality, the sum over
      budget rows of the row's dual times the expert's use.
    - `choice`, `runner_up`, `margin`: per category; the margin is the difference in utility.
    - `hosted`: the experts that the plan keeps running.
    - `is_priced`: True if some price is not 0.
    - `unmeasured`, shape (n_categories, n_experts), None if empty: experts that may serve the category and were never
      scored. Their quality is -inf, so that only exploration selects them.
    - `residual`: what a text says beyond its category, over the same names; None if it does not improve decisions. It
      has a file of its own.
    """

    categories: tuple[str, ...]
    experts: tuple[str, ...]
    quality: NDArray[np.float64]
    price: NDArray[np.float64]
    choice: tuple[str, ...]
    runner_up: tuple[str | None, ...]
    margin: tuple[float, ...]
    hosted: tuple[str, ...]
    duals: Mapping[str, float]
    unmeasured: NDArray[np.bool_] | None = None
    residual: Residual | None = None
    _value: NDArray[np.float64] = field(init=False, repr=False)
    is_priced: bool = field(init=False, repr=False)
    _exclusion: NDArray[np.float64] = field(init=False, repr=False)
    _value_of_request: NDArray[np.float32] = field(init=False, repr=False)
    _excludes: bool = field(init=False, repr=False)
    _unmeasured_names: tuple[frozenset[str], ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.price.shape != self.quality.shape:
            raise ValueError(f"price of shape {self.price.shape}, not {self.quality.shape}")
        allowed = np.isfinite(self.quality)
        arrays = {
            "quality": self.quality.copy(),
            "price": self.price.copy(),
            "_value": np.where(allowed, self.quality, 0.0) - self.price,
            "_exclusion": np.where(allowed, 0.0, -np.inf),
        }
        arrays["_value_of_request"] = arrays["_value"].astype(np.float32)
        for name, array in arrays.items():
            array.setflags(write=False)
            object.__setattr__(self, name, array)
        object.__setattr__(self, "_excludes", not allowed.all())
        object.__setattr__(self, "is_priced", bool(self.price.any()))
        object.__setattr__(self, "duals", MappingProxyType(dict(self.duals)))
        names = (frozenset[str](),) * len(self.categories)
        if (rows := self.unmeasured) is not None:
            names = tuple(frozenset(name for name, one in zip(self.experts, row, strict=True) if one) for row in rows)
        object.__setattr__(self, "_unmeasured_names", names)

    @property
    def general_expert(self) -> str:
        """The expert or arm that answers `general`, and uncertain requests."""
        return self.choice[self.categories.index(GENERAL)]

    def unmeasured_experts(self, category: int) -> frozenset[str]:
        """Return the experts that may serve the category of this index and were never scored."""
        return self._unmeasured_names[category]

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
        return cls(
            categories=categories,
            experts=experts,
            quality=quality,
            price=np.zeros((len(categories), len(experts))),
            choice=choice,
            runner_up=tuple(general if expert != general else None for expert in choice),
            margin=tuple(0.99 if expert != general else 1.0 for expert in choice),
            hosted=experts,
            duals={},
        )

    def to_json(self) -> bytes:
        """Serialize to JSON; equal assignments give equal bytes. orjson writes null for -inf."""
        fields = {
            "version": VERSION,
            "categories": self.categories,
            "experts": self.experts,
            "quality": self.quality.tolist(),
            "price": self.price.tolist(),
            "choice": self.choice,
            "runner_up": self.runner_up,
            "margin": self.margin,
            "hosted": self.hosted,
            "duals": dict(self.duals),
        }
        if self.unmeasured is not None:
            fields["unmeasured"] = self.unmeasured.tolist()
        return orjson.dumps(fields, option=orjson.OPT_SORT_KEYS)

    @classmethod
    def from_json(cls, data: bytes) -> Assignment:
        """Parse the result of `to_json`. Raises ArtifactError."""
        try:
            fields = orjson.loads(data)
            if fields["version"] != VERSION:
                raise ValueError(f"version {fields['version']}, not {VERSION}")
            unmeasured = fields.get("unmeasured")
            if unmeasured is not None and np.shape(unmeasured) != np.shape(fields["quality"]):
                raise ValueError(f"unmeasured of shape {np.shape(unmeasured)}")
            quality = np.array(fields["quality"], dtype=np.float64)
            quality[np.isnan(quality)] = -np.inf
            assignment = cls(
                categories=tuple(fields["categories"]),
                experts=tuple(fields["experts"]),
                quality=quality,
                price=np.array(fields["price"], dtype=np.float64),
                choice=tuple(fields["choice"]),
                runner_up=tuple(fields["runner_up"]),
                margin=tuple(fields["margin"]),
                hosted=tuple(fields["hosted"]),
                duals=fields["duals"],
                unmeasured=None if unmeasured is None else np.array(unmeasured, dtype=np.bool_),
            )
            shape = (len(assignment.categories), len(assignment.experts))
            if (assignment.quality.shape, assignment.price.shape) != (shape, shape):
                shapes = f"quality of shape {assignment.quality.shape}, price of shape {assignment.price.shape}"
                raise ValueError(f"{shapes}, not {shape}")
            if {len(assignment.choice), len(assignment.runner_up), len(assignment.margin)} != {shape[0]}:
                raise ValueError("not one choice, runner-up and margin for each category")
        except (KeyError, TypeError, ValueError) as error:
            raise ArtifactError(f"assignment: cannot be read ({error!r}); make it again with `coe plan`") from error
        return assignment

    def over(self, categories: tuple[str, ...]) -> Assignment:
        """Return the assignment with its categories in this order."""
        order = [self.categories.index(name) for name in categories]
        return replace(
            self,
            categories=categories,
            quality=self.quality[order],
            price=self.price[order],
            choice=tuple(self.choice[row] for row in order),
            runner_up=tuple(self.runner_up[row] for row in order),
            margin=tuple(self.margin[row] for row in order),
            unmeasured=None if self.unmeasured is None else self.unmeasured[order],
            residual=None if self.residual is None else self.residual.over(categories, self.experts),
        )

    @property
    def digest(self) -> str:
        """SHA-256 of `to_json` and the residual, hexadecimal."""
        residual = b"" if self.residual is None else self.residual.to_bytes()
        return hashlib.sha256(self.to_json() + residual).hexdigest()


def expected_utility(
    assignment: Assignment, posterior: NDArray[np.floating], residual: NDArray[np.floating] | None = None
) -> NDArray[np.floating]:
    """Return expected quality minus price of each expert, shape (n_experts,), for a posterior (n_categories,).

    The `residual` of the text (n_experts,) is added, if it is known (`apply_residual`). An expert that may not serve
    the most likely category gets -inf; in other categories it counts with quality 0. The result has the type of the
    posterior: float32 for a router's, which takes half the time.
    """
    value = assignment._value_of_request if posterior.dtype == np.float32 else assignment._value
    utility: NDArray[np.floating] = posterior.dot(value)
    if assignment._excludes:
        utility += assignment._exclusion[posterior.argmax()]
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
    utility = assignment._value.take(eligible, axis=1)
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
    utility = assignment._value.take(eligible, axis=1)
    return float(utility.max(axis=1).sum() - utility.sum(axis=0).max()) / len(utility)


def residual_gain(assignment: Assignment, eligible: Sequence[int]) -> NDArray[np.floating]:
    """Return by category what the residual of a text is expected to gain in utility, shape (n_categories,).

    Only the experts at the indices `eligible` (at least one) count. Without a residual the gains are 0.
    """
    if assignment.residual is None:
        return np.zeros(len(assignment.categories))
    return assignment.residual.gain(assignment._value, eligible)


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
