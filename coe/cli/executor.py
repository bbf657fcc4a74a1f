"""Runs the heavy tasks of a training job, in this process or on a Ray cluster (`--executor`).

A task runner maps a function over items and returns the results in order. Both runners use one BLAS thread a task, so
a job gives the same numbers on either executor. `coe train` and `coe retrain` choose the executor; the trainer in
`routers` depends only on the Protocol `TaskRunner`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import TYPE_CHECKING, Any, TypeVar

from coe.errors import CoEError, JobError

if TYPE_CHECKING:
    from routers.encoders import TaskRunner

T = TypeVar("T")
R = TypeVar("R")


class Executor(StrEnum):
    """The place where the tasks of a job, or the servers of experts, run."""

    LOCAL = "local"
    RAY = "ray"


@contextmanager
def task_runner(executor: Executor) -> Iterator[TaskRunner]:
    """Yield the executor's task runner. Raises ClusterError if Ray is not installed or cannot be reached."""
    if executor is Executor.RAY:
        from coe.fleet.ray.fleet import ray_cluster

        with ray_cluster() as ray:
            yield RayRunner(ray)
    else:
        from routers.encoders import LocalRunner

        yield LocalRunner()


class RayRunner:
    """Runs each item as a Ray task and returns the results in the order of the items."""

    def __init__(self, ray: Any) -> None:
        self._ray = ray
        self._run_remote = ray.remote(_run_on_one_thread)

    def map(self, task: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        """Submit all items at once; the task and what it holds are sent once.

        Raises what a task raised, or JobError where the cluster lost the task.
        """
        shared_task = self._ray.put(task)
        pending = [self._run_remote.remote(shared_task, item) for item in items]
        for result in pending:
            try:
                yield self._ray.get(result)
            except self._ray.exceptions.RayError as error:
                if isinstance(error, CoEError):
                    raise
                raise JobError(f"ray: a task failed ({type(error).__name__}: {error}); run the job again") from error


def _run_on_one_thread(task: Callable[[T], R], item: T) -> R:
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1, user_api="blas"):
        return task(item)
