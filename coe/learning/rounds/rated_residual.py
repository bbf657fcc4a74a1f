"""Fits the residual of a plan again, to its measured prompts and to the rated requests whose text the log keeps."""

from __future__ import annotations

import numpy as np

from coe.foreground import note_if_slow
from coe.learning.refit import agreements, trust_of
from coe.learning.rounds.round import Job
from coe.planning.residual import MAX_PROMPTS, Evidence, Residual, fit_residual

MIN_RATED = 100
"""Rated requests with text that a residual is fitted to again."""


def fit_rated(measured: Residual | None, job: Job) -> tuple[Residual | None, Evidence | None]:
    """Return the residual with rated requests, if that improves the decisions of the assignment in use; and the
    evidence, None without measured prompts.

    Scores and thumbs of tenants that do not contradict the others count; a preference says little of one answer.
    """
    if measured is None:
        return None, None
    import routers
    from coe.artifacts.active_state import check_router, encoder_digest

    artifact, assignment, experience = check_router(job.settings)[1], job.in_use.assignment, job.loaded.experience
    if measured.encoder != encoder_digest(artifact):
        return None, Evidence(0.0, 0.0, "it is of another encoder; run `coe plan` again")
    ids, texts = job.loaded.frame.table["request_id"].to_pylist(), job.loaded.frame.texts
    counts = (experience.weight == 1.0) & (trust_of(experience, agreements(experience)) == 1.0)
    rows = [row for row in np.flatnonzero(counts).tolist() if ids[row] in texts][-MAX_PROMPTS:]
    if len(rows) < MIN_RATED:
        return None, Evidence(0.0, 0.0, f"{len(rows)} rated requests have text in the log; it needs {MIN_RATED}")
    names = [ids[row] for row in rows]
    with note_if_slow("encoding the rated requests"):
        features = routers.load_encoder(artifact.folder).features([texts[name] for name in names])
    answered = experience.chosen[rows, None] == np.arange(len(assignment.experts))
    scores = np.where(answered, experience.reward[rows, None], np.nan)
    prompts = measured.over(assignment.categories, assignment.experts)
    prompts = prompts.with_ratings(names, measured.projection(features), experience.posterior[rows], scores)
    return fit_residual(prompts, np.where(np.isfinite(assignment.quality), assignment.price, np.inf))
