"""Adds to a wheel what is not in the repository: the libraries of the page at /ui, and the trained starter router.

A build that cannot fetch the libraries fails. The router is that of the folder in WHEEL_ROUTER, which `scripts/wheel`
sets. Other builds have no router, even if an earlier build has left one behind.
"""

import os
import runpy
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class WheelHook(BuildHookInterface):  # type: ignore[type-arg]
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version != "editable":  # scripts/setup fetches it then
            runpy.run_path(str(Path(self.root) / "scripts" / "vendor.py"))["vendor"]()
            if router := os.environ.get("WHEEL_ROUTER"):
                build_data["force_include"][router] = "routers/starter/router"
