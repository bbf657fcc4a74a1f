"""The starter router that a wheel carries, ready to be put into use where none is trained.

`scripts/wheel` trains it on the starter prompts and adds its artifact to the wheel. A checkout has none.
"""

from __future__ import annotations

from pathlib import Path

import routers
from coe.artifacts.manifest import MANIFEST, Artifact, read_manifest
from coe.registry import Registry

FOLDER = Path(routers.__file__).parent / "starter" / "router"
"""The artifact in an installation from a wheel."""
WHY = "the router that this version of CoE ships, until one is trained"


def find(registry: Registry) -> Artifact | None:
    """Return the packaged router, not yet verified; None without one, or if experts.yaml declares what it is not.

    It was trained with the default encoder on the starter prompts. `check_fit` decides whether its categories fit.
    """
    declared = registry.router
    other = declared.training_data or declared.extra_training_data or declared.encoder != routers.DEFAULT_ENCODER
    return None if other or not (FOLDER / MANIFEST).is_file() else Artifact(FOLDER, read_manifest(FOLDER))
