"""The router that a build of the wheel packs, and its text for the package index.

hatchling is there in a build only, so a stand-in has its place.
"""

from __future__ import annotations

import re
import runpy
import sys
import tomllib
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


def packed(root: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    interface = ModuleType("hatchling.builders.hooks.plugin.interface")
    interface.BuildHookInterface = object  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, interface.__name__, interface)
    hook = runpy.run_path(str(ROOT / "scripts" / "build_hook.py"))["WheelHook"]
    build_data: dict[str, Any] = {"force_include": {}}
    hook.initialize(SimpleNamespace(root=root), "standard", build_data)
    found: dict[str, str] = build_data["force_include"]
    return found


def test_a_router_that_an_earlier_build_left_is_not_packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "vendor.py").write_text("def vendor(): pass\n")
    (tmp_path / "build" / "router").mkdir(parents=True)
    monkeypatch.delenv("WHEEL_ROUTER", raising=False)
    assert packed(tmp_path, monkeypatch) == {}
    monkeypatch.setenv("WHEEL_ROUTER", "build/router")
    assert packed(tmp_path, monkeypatch) == {"build/router": "routers/starter/router"}


def test_the_text_for_the_package_index_has_no_link_into_the_repository() -> None:
    text = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["readme"]["text"]
    assert re.findall(r"\]\((?!https://)", text) == []
    assert "pip install composition-of-experts\n" in text
