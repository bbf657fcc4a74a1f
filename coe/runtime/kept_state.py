"""`KeptState`: the state that a gateway loaded last. It can be loaded again while the files in use are invalid.

`gateway/process/last_good.py` stores it on disk.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from coe.artifacts.kinds import ROUTER
from coe.artifacts.manifest import Artifact, read_artifact
from coe.errors import ArtifactError
from coe.registry import Registry, load_text
from coe.runtime.api_keys import with_admin_digest
from coe.settings import Endpoint, Settings


@dataclass(frozen=True, slots=True)
class KeptState:
    """A declaration, and the versions and servers that were in use with it."""

    declaration: str = field(repr=False)
    """The text of experts.yaml. Environment variables in it are not substituted."""
    admin_digest: str | None
    """Digest of the key of COE_ADMIN_KEY_FILE; None without one."""
    endpoints: Mapping[str, tuple[Endpoint, ...]] = field(repr=False)
    """Addresses of the servers of local experts."""
    versions: Mapping[str, str | None]
    """The version in use of each kind of artifact, None for none."""
    artifacts: Path
    """Folder of the versions KIND/VERSION, which are read first."""
    copies: Path
    """Folder of copies KIND/VERSION, for versions whose folder under `artifacts` is damaged."""

    def registry(self, settings: Settings) -> Registry:
        """The parsed declaration. Raises ConfigError."""
        registry = load_text(self.declaration, settings.config.name, environ=settings.environ)
        return registry if self.admin_digest is None else with_admin_digest(registry, self.admin_digest)

    def router(self) -> Artifact:
        """The router. Raises ArtifactError if there is none, or its copy is damaged too."""
        artifact = self.artifact(ROUTER)
        if artifact is None:
            raise ArtifactError("the kept state has no router")
        return artifact

    def artifact(self, kind: str) -> Artifact | None:
        """The version of a kind, verified; None if none was in use. Raises ArtifactError if its copy is damaged too."""
        version = self.versions.get(kind)
        if version is None:
            return None
        with suppress(ArtifactError):
            return read_artifact(self.artifacts / kind / version)
        return read_artifact(self.copies / kind / version)
