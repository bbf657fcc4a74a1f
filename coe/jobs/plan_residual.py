"""Fits the residual of a plan to its measured prompts, with the encoder of the router in use."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from coe.errors import ArtifactError
from coe.jobs.foreground import note_if_slow
from coe.mapping import Assignment, PlanInputs
from coe.mapping.residual import Evidence, fit_residual
from coe.routing.request_text import prompt_text
from coe.settings import Settings


def with_residual(settings: Settings, basis: PlanInputs, assignment: Assignment) -> tuple[Assignment, Evidence]:
    """Return the assignment with its residual, if that improves decisions, and the evidence."""
    import routers
    from coe.runtime.active_state import check_router, encoder_digest

    if basis.prompt_scores is None:
        return assignment, Evidence(0.0, 0.0, "no prompts are measured")
    try:
        router = check_router(settings)[1]
        encoder = routers.load_encoder(router.folder)
    except ArtifactError as error:
        return assignment, Evidence(0.0, 0.0, f"the router cannot be used ({error})")

    def features(rows: NDArray[np.int64]) -> NDArray[np.float32]:
        with note_if_slow("encoding the measured prompts"):
            return encoder.features([prompt_text(basis.prompts[row][1]) for row in rows.tolist()])

    labels, scores = basis.prompt_scores
    residual, evidence = fit_residual(
        features,
        labels,
        scores,
        dimensions=encoder.dimensions,
        charge=np.where(np.isfinite(assignment.quality), assignment.price, np.inf),
        categories=assignment.categories,
        experts=assignment.experts,
        prompt_ids=[prompt_id for prompt_id, _ in basis.prompts],
        encoder=encoder_digest(router),
    )
    return replace(assignment, residual=residual), evidence
