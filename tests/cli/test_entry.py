"""The command `coe` refuses to run with packages of other distributions in place of its own."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from coe import entry
from coe.cli import up
from coe.entry import PACKAGES, foreign_package
from coe.errors import missing_package, pip_install
from coe.settings import Settings

ROOT = Path(__file__).parents[2]


@pytest.fixture
def installation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the three packages and the record of their installation."""
    root = tmp_path / "site-packages"
    lines = []
    for name in PACKAGES:
        (root / name).mkdir(parents=True)
        (root / name / "__init__.py").write_text(f'"""Package {name}."""\n')
        lines.append(f"{name}/__init__.py,{entry._digest(root / name / '__init__.py')},20")
    info = root / "composition_of_experts-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: composition-of-experts\nVersion: 1\n")
    (info / "RECORD").write_text("\n".join(lines))
    monkeypatch.setattr(sys, "path", [str(root), *sys.path])
    for name in [one for one in sys.modules if one.partition(".")[0] in PACKAGES]:
        monkeypatch.delitem(sys.modules, name)
    return root


def test_an_installation_of_its_own_packages_is_accepted(installation: Path) -> None:
    assert foreign_package(installation) is None


@pytest.mark.parametrize("name", PACKAGES)
@pytest.mark.parametrize("content", ["from coe.example import add\n", None])
def test_a_package_that_another_distribution_replaced_is_named(
    installation: Path, name: str, content: str | None
) -> None:
    file = installation / name / "__init__.py"
    if content is None:
        file.unlink()
    else:
        file.write_text(content)
    problem = foreign_package(installation)
    assert problem is not None
    assert str(file) in problem
    assert "pip install --force-reinstall --no-deps composition-of-experts" in problem


def test_a_folder_that_hides_a_package_is_named_before_it_is_imported(tmp_path: Path) -> None:
    (tmp_path / "routers").mkdir()
    (tmp_path / "routers" / "__init__.py").write_text("raise SystemExit('imported')\n")
    run = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import coe.entry; sys.path.insert(0, {str(tmp_path)!r}); "
    done = subprocess.run(
        [sys.executable, "-P", "-c", f"{run}coe.entry.main()"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert str(tmp_path / "routers") in done.stderr
    assert "virtual environment" in done.stderr


def test_the_command_imports_no_package_of_an_extra() -> None:
    extras = (
        "httpx",
        "lancedb",
        "litellm",
        "matplotlib",
        "opentelemetry",
        "pyarrow",
        "ray",
        "scipy",
        "sklearn",
        "torch",
    )
    shown = f"import sys, coe.cli; print([name for name in {extras} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", shown], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_gateway_that_coe_up_starts_does_not_import_from_the_current_folder(tmp_path: Path) -> None:
    settings = Settings.read({}, config=tmp_path / "experts.yaml")
    assert up._gateway(settings).argv[:4] == (sys.executable, "-P", "-m", "coe.cli")


def test_no_message_or_page_names_the_foreign_distribution_coe() -> None:
    """`pip install coe` would fetch another project."""
    wrong = re.compile(r"""pip install (?:-\S+ )*['"]?coe(?![\w.-])|(?<![\w-])coe\[[a-z]""")
    folders = ("coe", "gateway", "routers", "docs", "deploy", "examples", "scripts", "benchmarks", ".github")
    suffixes = (".py", ".md", ".yaml", ".yml", "")
    files = [path for name in folders for path in (ROOT / name).rglob("*") if path.suffix in suffixes]
    files += [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "experts.yaml", "pyproject.toml")]
    texts = {path: path.read_text(errors="replace") for path in files if path.is_file()}
    assert len(texts) > 300
    assert [path for path, text in texts.items() if wrong.search(text)] == []
    for text in ("pip install coe", "pip install -U coe", "pip install 'coe[train]'", "needs coe[train]"):
        assert wrong.search(text), text
    for text in (pip_install("train"), "pip install composition-of-experts && coe serve", "pip install ./coe"):
        assert not wrong.search(text), text


def test_a_missing_module_of_the_core_is_no_matter_of_an_extra() -> None:
    core = ModuleNotFoundError(name="threadpoolctl")
    assert missing_package(core) is None
    assert "composition-of-experts[train]" in (missing_package(ModuleNotFoundError(name="torch.nn")) or "")
