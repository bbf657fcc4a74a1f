"""The kinds of artifacts that a gateway serves with: one table for the stores, `coe promote` and `/v1/artifacts`.

`coe/artifacts/versions.py` checks a version before it comes into use.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

ROUTER, ASSIGNMENT, GATE = "router", "assignment", "gate"


@dataclass(frozen=True, slots=True)
class ArtifactKind:
    """One kind of artifact.

    `remade_by` is the command that makes a damaged version again. `quality` describes the number that versions are
    compared by, `check` what is verified before a promotion, and `default` what serves where no version is in use.
    """

    name: str
    remade_by: str
    quality: str
    check: str
    default: str = "none"


_KINDS = (
    ArtifactKind(
        ROUTER,
        remade_by="coe train",
        quality="accuracy on held-out prompts",
        check="its categories are those of experts.yaml, and its files are complete",
    ),
    ArtifactKind(
        ASSIGNMENT,
        remade_by="coe plan",
        quality="planned quality, a lower confidence bound",
        check="its categories and experts are declared in experts.yaml",
        default="as declared in experts.yaml",
    ),
    ArtifactKind(
        GATE,
        remade_by="coe plan",
        quality="quality with the gate on held-out questions",
        check="its categories are those of experts.yaml",
    ),
)
ARTIFACT_KINDS: Mapping[str, ArtifactKind] = {kind.name: kind for kind in _KINDS}
"""By name, in the order in which a gateway reads them."""
