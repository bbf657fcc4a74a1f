"""The router and the kernel that a build of the wheel packs, and its text for the package index.

hatchling is there in a build only, so a stand-in has its place.
"""

from __future__ import annotations

import runpy
import shutil
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


def built(root: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    interface = ModuleType("hatchling.builders.hooks.plugin.interface")
    interface.BuildHookInterface = object  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, interface.__name__, interface)
    hook = runpy.run_path(str(ROOT / "scripts" / "build_hook.py"))["WheelHook"]
    build_data: dict[str, Any] = {"force_include": {}}
    hook.initialize(SimpleNamespace(root=root), "standard", build_data)
    return build_data


def checkout(folder: Path) -> Path:
    """Makes the part of a checkout that the hook reads."""
    (folder / "scripts").mkdir()
    (folder / "scripts" / "vendor.py").write_text("def vendor(): pass\n")
    shutil.copy(ROOT / "scripts" / "build_kernel.py", folder / "scripts")
    shutil.copytree(ROOT / "routers" / "kernel", folder / "routers" / "kernel")
    return folder


def test_a_router_that_an_earlier_build_left_is_not_packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (checkout(tmp_path) / "build" / "router").mkdir(parents=True)
    monkeypatch.setenv("BUILD_KERNEL", "0")
    monkeypatch.delenv("WHEEL_ROUTER", raising=False)
    assert built(tmp_path, monkeypatch) == {"force_include": {}}
    monkeypatch.setenv("WHEEL_ROUTER", "build/router")
    assert built(tmp_path, monkeypatch) == {"force_include": {"build/router": "routers/starter/router"}}


def test_a_wheel_with_the_kernel_is_for_this_platform_and_any_later_python(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("BUILD_KERNEL", raising=False)
    monkeypatch.delenv("WHEEL_ROUTER", raising=False)
    build_data = built(checkout(tmp_path), monkeypatch)
    if shutil.which("cc") is None:
        assert build_data == {"force_include": {}}  # and so for any platform
        return
    (kernel,) = build_data["force_include"]
    assert Path(kernel).is_file()
    assert build_data["force_include"][kernel] == "routers/kernel/_kernel.abi3.so"
    assert build_data["tag"].startswith("cp311-abi3-")
    assert build_data["pure_python"] is False


def test_without_a_compiler_the_wheel_has_no_kernel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("BUILD_KERNEL", raising=False)
    monkeypatch.delenv("WHEEL_ROUTER", raising=False)
    monkeypatch.setenv("CC", "/bin/false")
    assert built(checkout(tmp_path), monkeypatch) == {"force_include": {}}
    assert "kernel: not built" in capsys.readouterr().out
