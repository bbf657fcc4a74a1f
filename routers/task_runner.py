"""Where the heavy parts of training run: in this process, or on a cluster (see `coe.jobs.engine`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol, TypeVar

T = TypeVar("T")
R = TypeVar("R")


class TaskRunner(Protocol):
    """Applies a task to each item and yields the results in order.

    Tasks, items and results must be picklable, and a task must return the same result wherever it runs.
    """

    def map(self, task: Callable[[T], R], items: Iterable[T]) -> Iterator[R]: ...


class LocalRunner:
    """Runs tasks in this process, one after the other, each when its result is requested."""

    def map(self, task: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        return map(task, items)
