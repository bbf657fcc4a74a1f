"""The release workflow: pinned actions, the least permissions, and steps that exist in the repository."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

import coe

ROOT = Path(__file__).parents[2]
WORKFLOW = ROOT / ".github" / "workflows" / "release.yml"
PERMISSIONS = {
    "wheel": {"contents": "read"},
    "pypi": {"id-token": "write"},
    "image": {"contents": "read", "packages": "write"},
    "chart": {"contents": "read", "packages": "write"},
}


def workflow() -> dict[str, Any]:
    found: dict[str, Any] = YAML(typ="safe").load(WORKFLOW)
    return found


def steps(job: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = workflow()["jobs"][job]["steps"]
    return found


def test_it_runs_on_a_tag_of_a_version_only() -> None:
    assert workflow()["on"] == {"push": {"tags": ["v*"]}}


def test_every_action_is_pinned_to_a_commit_and_its_version_noted() -> None:
    used = re.findall(r"uses: (.*)", WORKFLOW.read_text())
    assert len(used) >= 8
    assert [one for one in used if not re.fullmatch(r"[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", one)] == []


def test_each_job_has_the_permissions_that_it_needs_and_nothing_else_has_any() -> None:
    assert workflow()["permissions"] == {}
    assert {name: job["permissions"] for name, job in workflow()["jobs"].items()} == PERMISSIONS
    for name in workflow()["jobs"]:
        for step in steps(name):
            if step.get("uses", "").startswith("actions/checkout@"):
                assert step["with"] == {"persist-credentials": False}


def test_only_the_job_that_publishes_can_identify_itself_to_the_index_and_it_runs_no_code_of_the_repository() -> None:
    assert workflow()["jobs"]["pypi"]["environment"] == "pypi"
    assert [step for step in steps("pypi") if "run" in step] == []
    assert "secrets." not in WORKFLOW.read_text()  # trusted publishing: there is no token to leak


def test_nothing_that_others_write_is_put_into_a_script() -> None:
    scripts = [step["run"] for name in PERMISSIONS for step in steps(name) if "run" in step]
    assert scripts
    assert [script for script in scripts if "${{" in script] == []


def test_everything_is_released_after_the_wheel_was_tried() -> None:
    tried = [step.get("run", "") for step in steps("wheel")]
    assert tried.index("make wheel") < tried.index(".venv/bin/python scripts/try_wheel.py")
    needs = {name: job.get("needs") for name, job in workflow()["jobs"].items()}
    assert needs == {"wheel": None, "pypi": "wheel", "image": "wheel", "chart": "image"}


def test_its_commands_and_targets_exist() -> None:
    assert re.search(r"^wheel:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert (ROOT / "scripts" / "try_wheel.py").is_file()
    for target in workflow()["jobs"]["image"]["strategy"]["matrix"]["target"]:
        assert f" AS {target}\n" in (ROOT / "deploy" / "Dockerfile").read_text()


@pytest.mark.parametrize("line", ["version: {}", 'appVersion: "{}"'])
def test_package_and_chart_have_one_version(line: str) -> None:
    """The workflow compares both with the tag, by these lines."""
    chart = (ROOT / "deploy" / "helm" / "coe" / "Chart.yaml").read_text().splitlines()
    assert line.format(coe.__version__) in chart
    assert f'__version__ = "{coe.__version__}"' in (ROOT / "coe" / "__init__.py").read_text().splitlines()
