"""What `decide()` trusts and charges: expected quality by category and expert, and the price of each expert.

What hangs on knowing a category better: nothing where the same expert is best for all that are likely.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import numpy as np
import orjson
from numpy.typing import NDArray

from coe.errors import ArtifactError


@dataclass(frozen=True, slots=True, eq=False)
class Assignment:
    """Which expert serves which category, at what expected quality and price.

    `quality` has shape (n_categories, n_experts): the quality (0 to 1) that decisions trust, -inf where the expert may
    not serve the category. `price` has shape (n_experts,): what one request to the expert costs, in units of quality;
    it is the sum over the budget rows of `duals` x the expert's use of that row. `choice`, `runner_up` and `margin` (in
    units of quality, prices included) go by category; `hosted` names the experts that the plan keeps running.
    `unmeasured`, shape (n_categories, n_experts), marks the cells of experts that may serve the category and were never
    scored: their quality is -inf, so that only exploration chooses them. None where there are none.
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
    _worth: NDArray[np.float64] = field(init=False, repr=False)
    _barred: NDArray[np.float64] = field(init=False, repr=False)
    _untried: tuple[frozenset[str], ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        may = np.isfinite(self.quality)
        arrays = {
            "quality": self.quality.copy(),
            "price": self.price.copy(),
            "_worth": np.where(may, self.quality, 0.0),
            "_barred": np.where(may, 0.0, -np.inf),
        }
        for name, array in arrays.items():
            array.setflags(write=False)
            object.__setattr__(self, name, array)
        object.__setattr__(self, "duals", MappingProxyType(dict(self.duals)))
        object.__setattr__(self, "_untried", self._names_unmeasured())

    def _names_unmeasured(self) -> tuple[frozenset[str], ...]:
        if self.unmeasured is None:
            return (frozenset(),) * len(self.categories)
        return tuple(
            frozenset(name for name, one in zip(self.experts, row, strict=True) if one) for row in self.unmeasured
        )

    def unmeasured_experts(self, category: int) -> frozenset[str]:
        """The experts that may serve the category of this index and were never scored."""
        return self._untried[category]

    @classmethod
    def declared(
        cls, categories: tuple[str, ...], experts: tuple[str, ...], mapping: Mapping[str, str], general: str
    ) -> Assignment:
        """The mapping as pinned in experts.yaml, nothing measured: quality 1 for a category's declared expert, 0.01 for
        the general expert, 0 for the rest; everything free. A category that `mapping` leaves out is the general
        expert's."""
        choice = tuple(mapping.get(category, general) for category in categories)
        quality = np.zeros((len(categories), len(experts)))
        quality[:, experts.index(general)] = 0.01
        for row, expert in enumerate(choice):
            quality[row, experts.index(expert)] = 1.0
        return cls(
            categories=categories,
            experts=experts,
            quality=quality,
            price=np.zeros(len(experts)),
            choice=choice,
            runner_up=tuple(general if expert != general else None for expert in choice),
            margin=tuple(0.99 if expert != general else 1.0 for expert in choice),
            hosted=experts,
            duals={},
        )

    def to_json(self) -> bytes:
        """The assignment as JSON, the same bytes for the same assignment; -inf is written as null."""
        fields = {
            "version": 1,
            "categories": self.categories,
            "experts": self.experts,
            "quality": [[value if np.isfinite(value) else None for value in row] for row in self.quality.tolist()],
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
        """Reads what `to_json` wrote. Raises ArtifactError where it is something else."""
        try:
            fields = orjson.loads(data)
            if fields["version"] != 1:
                raise ValueError(f"version {fields['version']}, not 1")
            rows = [[-np.inf if value is None else value for value in row] for row in fields["quality"]]
            made = cls(
                categories=tuple(fields["categories"]),
                experts=tuple(fields["experts"]),
                quality=np.array(rows, dtype=np.float64).reshape(len(rows), -1),
                price=np.array(fields["price"], dtype=np.float64),
                choice=tuple(fields["choice"]),
                runner_up=tuple(fields["runner_up"]),
                margin=tuple(fields["margin"]),
                hosted=tuple(fields["hosted"]),
                duals=fields["duals"],
                unmeasured=_cells(fields.get("unmeasured"), rows),
            )
            if (made.quality.shape, made.price.shape) != (
                (len(made.categories), len(made.experts)),
                (len(made.experts),),
            ):
                raise ValueError(f"quality of shape {made.quality.shape}, price of shape {made.price.shape}")
            if {len(made.choice), len(made.runner_up), len(made.margin)} != {len(made.categories)}:
                raise ValueError("not one choice, runner-up and margin for each category")
        except (KeyError, TypeError, ValueError) as error:
            raise ArtifactError(f"assignment: cannot be read ({error!r}); make it again with `coe plan`") from error
        return made

    def over(self, categories: tuple[str, ...]) -> Assignment:
        """The same assignment with its categories in this order."""
        order = [self.categories.index(name) for name in categories]
        return replace(
            self,
            categories=categories,
            quality=self.quality[order],
            choice=tuple(self.choice[row] for row in order),
            runner_up=tuple(self.runner_up[row] for row in order),
            margin=tuple(self.margin[row] for row in order),
            unmeasured=None if self.unmeasured is None else self.unmeasured[order],
        )

    @property
    def digest(self) -> str:
        """SHA-256 of `to_json`, hexadecimal."""
        return hashlib.sha256(self.to_json()).hexdigest()


def _cells(found: list[list[bool]] | None, rows: list[list[float]]) -> NDArray[np.bool_] | None:
    if found is None:
        return None
    cells = np.array(found, dtype=np.bool_)
    if cells.shape != np.shape(rows):
        raise ValueError(f"unmeasured of shape {cells.shape}")
    return cells


def expected_utility(assignment: Assignment, posterior: NDArray[np.floating]) -> NDArray[np.float64]:
    """Expected quality less price of each expert, shape (n_experts,), under a posterior of shape (n_categories,).

    -inf for an expert that may not serve the likeliest category; in the others' share it counts with quality 0.
    """
    barred = assignment._barred[int(posterior.argmax())]
    scores: NDArray[np.float64] = posterior @ assignment._worth - assignment.price + barred
    return scores


MIN_UTILITY_DIFFERENCE = 0.01
"""Units of quality, prices taken off, by which another expert must be better to count as better."""


def decision_risk(assignment: Assignment, posterior: NDArray[np.floating], able: Sequence[int]) -> float:
    """The probability, 0 to 1, that the category is one for which the expert of highest expected quality under
    `posterior`, shape (n_categories,), is not the best one. Among the experts at the indices `able`, at least one."""
    chosen = int(expected_utility(assignment, posterior)[able].argmax())
    utility = (assignment.quality - assignment.price)[:, able]
    better = utility.max(axis=1) > utility[:, chosen] + MIN_UTILITY_DIFFERENCE
    return float(posterior[better].sum())
