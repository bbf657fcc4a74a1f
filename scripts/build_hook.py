"""Adds to a wheel what is not in the repository: the libraries of the page at /ui, the compiled kernel of the fast
heads, and the trained starter router.

A build that cannot fetch the libraries fails. Without a C compiler, or with BUILD_KERNEL=0, the wheel has no kernel and
is for any platform. The router is that of the folder in WHEEL_ROUTER, which `scripts/wheel` sets. Other builds have no
router, even if an earlier build has left one behind.
"""

import os
import runpy
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class WheelHook(BuildHookInterface):  # type: ignore[type-arg]
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version != "editable":  # scripts/setup adds them then
            scripts = Path(self.root) / "scripts"
            runpy.run_path(str(scripts / "vendor.py"))["vendor"]()
            if kernel := runpy.run_path(str(scripts / "build_kernel.py"))["build_kernel"](Path(self.root) / "build"):
                build_data["force_include"][str(kernel)] = f"routers/kernel/{kernel.name}"
                build_data["pure_python"] = False
                platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
                build_data["tag"] = f"cp311-abi3-{platform}"
            if router := os.environ.get("WHEEL_ROUTER"):
                build_data["force_include"][router] = "routers/starter/router"
