"""`--engine`: where the embedding and the fits of a job run."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from routers.training.parallel import Work


class Engine(StrEnum):
    """Where work runs."""

    LOCAL = "local"
    RAY = "ray"


EngineOption = Annotated[Engine, typer.Option("--engine", help="Where embedding and fits run: ray is a cluster's.")]


def working(engine: Engine) -> AbstractContextManager[Work]:
    """To be entered around the job. Raises ClusterError where there is no Ray."""
    if engine is Engine.RAY:
        from coe.learning.on_ray import on_ray

        return on_ray()
    from routers.training.parallel import Here

    return nullcontext(Here())
