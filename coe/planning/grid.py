"""Arrays over categories and experts, found by name, and their form as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Annotated, Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import PlainSerializer, PlainValidator


def _numbers(values: Any) -> NDArray[np.float64]:
    if not isinstance(values, list | np.ndarray):
        raise ValueError("not an array")
    return np.array(values, dtype=np.float64) if len(values) else np.zeros((0, 0))


def _booleans(values: Any) -> NDArray[np.bool_]:
    return _numbers(values) > 0


Array = Annotated[NDArray[np.float64], PlainValidator(_numbers), PlainSerializer(np.ndarray.tolist)]
Mask = Annotated[NDArray[np.bool_], PlainValidator(_booleans), PlainSerializer(np.ndarray.tolist)]
"""Arrays that are nested lists in JSON. A number that is not finite is written as null, which is read as NaN."""
Names = tuple[Sequence[str], Sequence[str]]
"""Names of categories and of experts."""


@dataclass(frozen=True, slots=True, eq=False)
class Grid:
    """Base of frozen values whose further fields are arrays of shape (n_categories, n_experts).

    In `over`, the cells of names that the grid lacks are NaN, or as `missing` says by field; with `spreads`, a category
    that it lacks has the mean of the others.
    """

    categories: tuple[str, ...]
    experts: tuple[str, ...]

    missing: ClassVar[Mapping[str, float]] = {}
    spreads: ClassVar[bool] = False

    def __post_init__(self) -> None:
        shape = len(self.categories), len(self.experts)
        for name, values in self.arrays().items():
            if values.shape != shape:
                raise ValueError(f"{name}: shape {values.shape}, not {shape}")

    def arrays(self) -> dict[str, NDArray[np.float64]]:
        """Return the arrays by field."""
        return {field.name: getattr(self, field.name) for field in fields(self)[2:]}

    def over(self, categories: Sequence[str], experts: Sequence[str]) -> Self:
        """Return the grid over other names, in their order."""
        known, names = (self.categories, self.experts), (tuple(categories), tuple(experts))
        found = {
            name: align(values, known, names, missing=self.missing.get(name, np.nan), spread=self.spreads)
            for name, values in self.arrays().items()
        }
        return replace(self, categories=names[0], experts=names[1], **found)


def select(
    values: NDArray[np.float64], known: Sequence[str], names: Sequence[str], *, missing: float = np.nan
) -> NDArray[np.float64]:
    """Map the last axis of an array from the `known` names to other `names`; values of unknown ones are `missing`."""
    place = {name: index for index, name in enumerate(known)}
    spare = np.full((*values.shape[:-1], 1), missing, dtype=values.dtype)
    return np.concatenate((values, spare), axis=-1)[..., [place.get(name, len(place)) for name in names]]


def align(
    values: NDArray[np.float64], known: Names, names: Names, *, missing: float = np.nan, spread: bool = False
) -> NDArray[np.float64]:
    """Map a table over the `known` names of categories and experts to other `names`; unknown cells are `missing`.

    With `spread`, the values of an unknown category are the means over the categories.
    """
    rows = select(values.T, known[0], names[0], missing=missing).T
    if spread and len(values):
        rows[[name not in known[0] for name in names[0]]] = values.mean(axis=0)
    return select(rows, known[1], names[1], missing=missing)
