"""Frozen dataclasses with a fast constructor behave as those without."""

from __future__ import annotations

import copy
import inspect
import pickle
from dataclasses import FrozenInstanceError, InitVar, dataclass, field, fields, replace
from typing import Any

import numpy as np
import pytest

from coe.core import Call, Chat, Decision, Message, Prediction, RequestOptions
from coe.frozen import fast_init
from coe.records.record import RoutingRecord
from coe.routing.decision import Previous
from coe.routing.request_text import RoutedText


@dataclass(frozen=True, slots=True)
class Slow:
    first: int
    second: dict[str, int] = field(default_factory=dict)
    third: str = "x"


@fast_init
@dataclass(frozen=True, slots=True)
class Fast:
    first: int
    second: dict[str, int] = field(default_factory=dict)
    third: str = "x"


@pytest.mark.parametrize(
    ("positional", "named"), [((1,), {}), ((1, {"a": 2}), {"third": "y"}), ((), {"first": 1, "second": {}})]
)
def test_the_fields_are_those_that_the_generated_constructor_sets(
    positional: tuple[Any, ...], named: dict[str, Any]
) -> None:
    slow, fast = Slow(*positional, **named), Fast(*positional, **named)
    assert [getattr(fast, one.name) for one in fields(fast)] == [getattr(slow, one.name) for one in fields(slow)]
    assert type(fast) is Fast
    assert fast == copy.copy(fast) == pickle.loads(pickle.dumps(fast)) == replace(fast)
    assert Fast(1).second is not Fast(1).second


@pytest.mark.parametrize(("positional", "named"), [((), {}), ((1,), {"fourth": 2}), ((1, {}, "", 4), {})])
def test_wrong_arguments_are_refused(positional: tuple[Any, ...], named: dict[str, Any]) -> None:
    with pytest.raises(TypeError):
        Fast(*positional, **named)


@fast_init
@dataclass(frozen=True, slots=True)
class Multiplied:
    first: int
    factor: InitVar[int] = 2
    second: int = field(init=False)

    def __post_init__(self, factor: int) -> None:
        self.second = factor * self.first  # type: ignore[misc]


def test_computed_fields_follow_the_parameters() -> None:
    value = Multiplied(3)
    assert (value.second, replace(value, first=4).second) == (6, 8)
    assert (Multiplied(3, 5).second, replace(Multiplied(3, 5), first=4).second) == (15, 8)
    assert value == copy.copy(value) == pickle.loads(pickle.dumps(value))
    with pytest.raises(FrozenInstanceError):
        value.second = 7  # type: ignore[misc]
    with pytest.raises(TypeError):
        Multiplied(3, 5, 15)  # type: ignore[call-arg]


def test_a_class_whose_fields_nothing_computes_keeps_its_constructor() -> None:
    @dataclass(frozen=True, slots=True)
    class Unset:
        first: int
        second: int = field(init=False)

    with pytest.raises(TypeError, match="Unset has no __post_init__ to compute second"):
        fast_init(Unset)


def test_the_best_category_and_the_confidence_follow_the_posterior() -> None:
    prediction = Prediction(np.array([0.2, 0.4, 0.4], np.float32), "fast", 0.5)
    other = replace(prediction, probabilities=np.array([0.9, 0.1, 0.0], np.float32))
    assert (prediction.best, prediction.confidence) == (1, float(np.float32(0.4)) * 0.5)  # the first of equal ones
    assert (other.best, other.confidence) == (0, float(np.float32(0.9)) * 0.5)
    known = Prediction(other.probabilities, "fast", 0.5, largest=(0, 0.9))
    assert (known.best, known.confidence) == (0, 0.45)
    assert replace(known, probabilities=prediction.probabilities).best == 1


@pytest.mark.parametrize(
    "kind", [Call, Chat, Decision, Message, Prediction, Previous, RequestOptions, RoutedText, RoutingRecord]
)
def test_the_values_of_a_request_are_frozen_and_keep_their_parameters(kind: type) -> None:
    parameters = inspect.signature(kind).parameters
    init_only = ["largest"] if kind is Prediction else []
    assert list(parameters) == [one.name for one in fields(kind) if one.init] + init_only
    computed_from = {"in_distribution": 1.0, "largest": (0, 1.0)} if kind is Prediction else {}
    value = kind(**dict.fromkeys(parameters) | computed_from)
    with pytest.raises(FrozenInstanceError):
        setattr(value, next(iter(parameters)), 1)
