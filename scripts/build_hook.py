"""A wheel carries what the page at /ui takes from others; a build that cannot fetch it fails."""

import runpy
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class VendorHook(BuildHookInterface):  # type: ignore[type-arg]
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version != "editable":  # scripts/setup fetches it then
            runpy.run_path(str(Path(self.root) / "scripts" / "vendor.py"))["vendor"]()
