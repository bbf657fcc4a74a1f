"""Fits the residual of a plan to its measured prompts, with the encoder of the router in use."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from coe.errors import ArtifactError
from coe.jobs.foreground import note_if_slow
from coe.mapping import Assignment, PlanInputs, solve
from coe.mapping.residual import Evidence, fit_residual
from coe.registry import Registry
from coe.routing.request_text import prompt_text
from coe.settings import Settings


def with_residual(
    settings: Settings, registry: Registry, basis: PlanInputs, assignment: Assignment
) -> tuple[Assignment, Evidence]:
    """Return the assignment with its residual and the prices for it, if that improves decisions; and the evidence."""
    import routers
    from coe.runtime.active_state import check_router, encoder_digest, load_router

    if basis.prompt_scores is None:
        return assignment, Evidence(0.0, 0.0, "no prompts are measured")
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

    labels, scores = basis.prompt_scores
    residual, evidence = fit_residual(
        read,
        labels,
        scores,
        dimensions=encoder.dimensions,
        charge=np.where(np.isfinite(assignment.quality), assignment.price, np.inf),
        categories=assignment.categories,
        experts=assignment.experts,
        prompt_ids=[prompt_id for prompt_id, _ in basis.prompts],
        encoder=encoder_digest(artifact),
    )
    if residual is not None:
        assignment = solve(basis.problem, traffic=basis.traffic, residual=residual)
    return assignment, evidence
