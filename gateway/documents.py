"""Who consults documents: the declared store with the encoder of its questions, and the gate, over what is in use."""

from __future__ import annotations

import logging
from concurrent.futures import Executor
from typing import TYPE_CHECKING

from coe.artifacts.store import ArtifactStore
from coe.retrieval.gate import FILE, Gate, OutdatedGate
from coe.retrieval.retrieval import Consultant
from coe.settings import Settings

if TYPE_CHECKING:
    from coe.runtime.active_state import InUse

GATE = "gate"
"""Kind of artifact, made by `coe plan`."""
_log = logging.getLogger("gateway")


def consultant_in_use(settings: Settings, in_use: InUse, *, threads: Executor) -> Consultant | None:
    """None where no store is declared. Raises ArtifactError for a damaged gate."""
    index = in_use.index
    if index is None:
        return None
    gate, version = gate_in_use(settings, in_use, dimensions=index.encoder.dimensions)
    return Consultant(
        in_use.registry.retrieval,
        retriever=index.store,
        encoder=index.encoder,
        router=in_use.router,
        threads=threads,
        gate=gate,
        version=version,
    )


def gate_in_use(settings: Settings, in_use: InUse, *, dimensions: int) -> tuple[Gate | None, str]:
    """The gate over the router's categories and the declared experts, and its version; None before the first one, or
    where it was fitted to other categories, another encoder or by an earlier CoE. Raises ArtifactError where it is
    damaged."""
    artifact = ArtifactStore(settings.artifacts, GATE).current()
    if artifact is None:
        return None, ""
    try:
        gate = Gate.load(artifact.folder / FILE)
    except OutdatedGate as error:
        _log.warning("%s; it stays unused", error)
        return None, ""
    if set(gate.categories) != set(in_use.router.categories) or gate.dimensions != dimensions:
        _log.warning(
            "gate %s is of other categories or another encoder: `coe score --retrieval both` and `coe plan` make a new "
            "one; it stays unused",
            artifact.manifest.version,
        )
        return None, ""
    return gate.over(in_use.router.categories, in_use.registry.expert_names), artifact.manifest.version
