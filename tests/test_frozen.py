"""Frozen dataclasses with a fast constructor behave as those without."""

from __future__ import annotations

import copy
import inspect
import pickle
from dataclasses import FrozenInstanceError, dataclass, field, fields, replace
from typing import Any

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


def test_a_class_that_computes_fields_keeps_its_constructor() -> None:
    @dataclass(frozen=True, slots=True)
    class Computed:
        first: int
        second: int = field(init=False)

    with pytest.raises(TypeError, match="Computed computes fields"):
        fast_init(Computed)


@pytest.mark.parametrize(
    "kind", [Call, Chat, Decision, Message, Prediction, Previous, RequestOptions, RoutedText, RoutingRecord]
)
def test_the_values_of_a_request_are_frozen_and_keep_their_parameters(kind: type) -> None:
    parameters = inspect.signature(kind).parameters
    assert list(parameters) == [one.name for one in fields(kind)]
    value = kind(**dict.fromkeys(parameters))
    with pytest.raises(FrozenInstanceError):
        setattr(value, next(iter(parameters)), 1)
