"""`--engine`: where the embedding and the fits of a job run.

Runs the heavy parts of a job as tasks of a Ray cluster.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from enum import StrEnum
from typing import TYPE_CHECKING, Any, TypeVar

from coe.errors import CoEError, JobError
from coe.fleet.ray.cluster import ray_cluster

if TYPE_CHECKING:
    from routers.task_runner import TaskRunner


class Engine(StrEnum):
    """Where work runs."""

    LOCAL = "local"
    RAY = "ray"


def task_runner(engine: Engine) -> AbstractContextManager[TaskRunner]:
    """To be entered around the job. Raises ClusterError where there is no Ray."""
    if engine is Engine.RAY:
        return ray_task_runner()
    from routers.task_runner import LocalRunner

    return nullcontext(LocalRunner())


T = TypeVar("T")
R = TypeVar("R")


@contextmanager
def ray_task_runner() -> Iterator[RayRunner]:
    """Connected until the block ends. Raises ClusterError without Ray, or where the cluster cannot be reached."""
    with ray_cluster() as ray:
        yield RayRunner(ray)


class RayRunner:
    """The results in the order of the items. One BLAS thread a task, as fits have it everywhere: the same numbers."""

    def __init__(self, ray: Any) -> None:
        self._ray = ray
        self._run = ray.remote(_run)

    def map(self, task: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        """All are submitted at once; the task itself, with all it holds, travels once. Raises what a task raised, or
        JobError where the cluster lost it."""
        shared = self._ray.put(task)
        waiting = [self._run.remote(shared, item) for item in items]
        for one in waiting:
            try:
                yield self._ray.get(one)
            except self._ray.exceptions.RayError as error:
                if isinstance(error, CoEError):
                    raise
                raise JobError(f"ray: a task failed ({type(error).__name__}: {error}); run the job again") from error


def _run(task: Callable[[T], R], item: T) -> R:
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    with threadpool_limits(1, user_api="blas"):
        return task(item)
