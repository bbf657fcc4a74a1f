"""Completes parts of experts.yaml to a whole declaration, and validates it with the registry."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ruamel.yaml import YAML

from scripts.reference.sources import read_declaration

GENERAL = "general"
_NAME = re.compile(r"\$\{(\w+)\}|os\.environ/(\w+)")


def complete(part: dict[str, Any]) -> str:
    """Return the smallest valid declaration with this part; required keys that it lacks are added."""
    named = part.get("assignment") or {}
    experts = part.get("experts") or [_expert(name) for name in dict.fromkeys([*named.values(), "generalist"])]
    known = [item["name"] for item in part.get("categories") or () if isinstance(item, dict) and "name" in item]
    categories = list(part.get("categories") or ())
    categories += [_category(name) for name in dict.fromkeys([*named, GENERAL]) if name not in known]
    first = next((one["name"] for one in experts if isinstance(one, dict) and "name" in one), "generalist")
    whole = {
        "version": 1,
        **part,
        "categories": categories,
        "experts": experts,
        "assignment": {**({} if GENERAL in named else {GENERAL: first}), **named},
    }
    text = io.StringIO()
    YAML(typ="safe").dump(whole, text)
    return text.getvalue()


def problems(text: str) -> Iterator[str]:
    """Yield the registry's errors for a declaration; environment variables count as set."""
    environ = {first or second: "x" for first, second in _NAME.findall(text)}
    with TemporaryDirectory() as folder:
        path = Path(folder) / "experts.yaml"
        path.write_text(text)
        yield from read_declaration(path, environ)


def _expert(name: str) -> dict[str, Any]:
    return {"name": name, "model": "m", "runtime": "external", "base_url": "http://127.0.0.1:9/v1"}


def _category(name: str) -> dict[str, Any]:
    return {"name": name, "description": "d"}
