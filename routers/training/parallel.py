"""Where the heavy parts of training run: here, or wherever a `TaskRunner` takes them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol, TypeVar

T = TypeVar("T")
R = TypeVar("R")


class TaskRunner(Protocol):
    """The results of `task` on each item, in their order. Task, items and results can be pickled, and a task gives the
    same result wherever it runs."""

    def map(self, task: Callable[[T], R], items: Iterable[T]) -> Iterator[R]: ...


class LocalRunner:
    """In this process, one after the other, each when its result is asked for."""

    def map(self, task: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        return map(task, items)
