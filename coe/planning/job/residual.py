"""Fits the residual of a plan with the encoder of the router in use: to its measured prompts, and to rated requests."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from coe.artifacts.manifest import Artifact
from coe.core import Encoder
from coe.errors import ArtifactError
from coe.foreground import note_if_slow
from coe.learning.experience import LoadedExperience
from coe.learning.refit import agreements, trust_of
from coe.planning import Assignment, solve
from coe.planning.job.basis import Basis
from coe.planning.residual import MAX_PROMPTS, Evidence, Ratings, Residual
from coe.registry import Registry
from coe.routing.request_text import prompt_text
from coe.settings import Settings

MIN_RATED = 100
"""Rated requests with text that a residual is fitted to again."""


def with_residual(
    settings: Settings, registry: Registry, basis: Basis, assignment: Assignment
) -> tuple[Assignment, Residual | None, Evidence]:
    """Return the assignment with its residual and the prices for it, if that improves decisions; else the measured
    prompts as a residual that is not used; and the evidence."""
    import routers
    from coe.artifacts.active_state import check_router, encoder_digest, load_router

    try:
        artifact = check_router(settings)[1]
        encoder, router = routers.load_encoder(artifact.folder), load_router(registry, artifact)
    except ArtifactError:
        return assignment, None, Evidence(0.0, 0.0, "it needs the encoder of a router; run `coe train`")
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
    residual, evidence = measured.fitted(_charge(assignment))
    if residual is None:
        return assignment, measured, evidence
    return solve(basis.problem, traffic=basis.traffic, residual=residual), None, evidence


def refitted(
    residual: Residual,
    settings: Settings,
    assignment: Assignment,
    loaded: LoadedExperience,
) -> tuple[Residual | None, Evidence]:
    """Return the residual fitted again, with the rated requests whose text the log keeps, if that improves the
    decisions of `assignment`; and the evidence. All are over the same names.

    Scores and thumbs of tenants that do not contradict the others count; a preference says little of one answer.
    """
    import routers
    from coe.artifacts.active_state import check_router, encoder_digest

    artifact: Artifact = check_router(settings)[1]
    if residual.encoder != encoder_digest(artifact):
        return None, Evidence(0.0, 0.0, "it is of another encoder; run `coe plan` again")
    texts = _newest_texts(loaded)
    if len(texts) < MIN_RATED:
        return None, Evidence(0.0, 0.0, f"{len(texts)} rated requests have text in the log; it needs {MIN_RATED}")
    rows = np.array(list(texts))
    encoder: Encoder = routers.load_encoder(artifact.folder)
    with note_if_slow("encoding the rated requests"):
        vectors = residual.projection(encoder.features([text for _, text in texts.values()]))
    ids = tuple(request_id for request_id, _ in texts.values())
    rated = loaded.experience.part(rows)
    ratings = Ratings(ids, vectors, rated.posterior, rated.chosen.astype(np.int64), rated.reward)
    return residual.fitted(_charge(assignment), ratings)


def _charge(assignment: Assignment) -> NDArray[np.float64]:
    return np.where(np.isfinite(assignment.quality), assignment.price, np.inf)


def _newest_texts(loaded: LoadedExperience) -> dict[int, tuple[str, str]]:
    """Id and routed text of the newest rated requests, by their row."""
    experience, texts = loaded.experience, loaded.frame.texts
    trusted = trust_of(experience, agreements(experience)) == 1.0
    rated, ids = np.flatnonzero((experience.weight == 1.0) & trusted), loaded.frame.table["request_id"]
    found = zip(rated.tolist(), ids.take(rated).to_pylist(), strict=True)
    return dict([(row, (name, texts[name])) for row, name in found if name in texts][-MAX_PROMPTS:])
