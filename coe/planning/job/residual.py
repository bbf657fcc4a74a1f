"""Fits the residual of a plan with the encoder of the router in use."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from coe.errors import ArtifactError
from coe.foreground import note_if_slow
from coe.planning import Assignment, solve
from coe.planning.job.basis import Basis
from coe.planning.residual import Evidence, Residual
from coe.registry import Registry
from coe.routing.request_text import prompt_text
from coe.settings import Settings


def with_residual(
    settings: Settings, registry: Registry, basis: Basis, assignment: Assignment
) -> tuple[Assignment, Evidence]:
    """Return the assignment, with its residual and the prices for it if that improves decisions, and the evidence."""
    import routers
    from coe.artifacts.active_state import check_router, encoder_digest, load_router

    try:
        artifact = check_router(settings)[1]
        encoder, router = routers.load_encoder(artifact.folder), load_router(registry, artifact)
    except ArtifactError:
        return assignment, Evidence(0.0, 0.0, "it needs the encoder of a router; run `coe train`")
    columns = [router.categories.index(name) for name in assignment.categories]

    def read(rows: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        texts = [prompt_text(basis.prompts[row][1]) for row in rows.tolist()]
        with note_if_slow("encoding the measured prompts"):
            features = encoder.features(texts)
        predictions = router.predict(texts, embeddings=features)
        return features, np.stack([one.probabilities[columns] for one in predictions])

    measured = Residual.of(
        read,
        basis.labels,
        basis.scores,
        dimensions=encoder.dimensions,
        categories=assignment.categories,
        experts=assignment.experts,
        prompts=basis.prompts,
        encoder=encoder_digest(artifact),
    )
    residual, evidence = measured.fitted(np.where(np.isfinite(assignment.quality), assignment.price, np.inf))
    if residual is None:
        return assignment, evidence
    return solve(basis.problem, traffic=basis.traffic, residual=residual), evidence
