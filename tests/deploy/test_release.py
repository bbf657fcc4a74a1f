"""The release workflow: pinned actions, the least permissions, and steps that exist in the repository."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
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


def test_every_action_is_pinned_to_a_commit_and_its_version_noted() -> None:
    used = re.findall(r"uses: (.*)", WORKFLOW.read_text())
    assert len(used) >= 8
    assert [one for one in used if not re.fullmatch(r"[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", one)] == []


def test_jobs_have_the_permissions_that_they_need_and_scripts_hold_nothing_that_others_write() -> None:
    assert workflow()["on"] == {"push": {"tags": ["v*"]}}
    assert workflow()["permissions"] == {}
    assert {name: job["permissions"] for name, job in workflow()["jobs"].items()} == PERMISSIONS
    for name in workflow()["jobs"]:
        for step in steps(name):
            if step.get("uses", "").startswith("actions/checkout@"):
                assert step["with"] == {"persist-credentials": False}
            assert "${{" not in step.get("run", "")
    assert [step for step in steps("pypi") if "run" in step] == []  # it alone can identify itself to the index
    assert "secrets." not in WORKFLOW.read_text()  # trusted publishing: there is no token to leak


def test_everything_is_released_after_the_wheel_was_tried() -> None:
    tried = [step.get("run", "") for step in steps("wheel")]
    assert tried.index("make wheel") < tried.index(".venv/bin/python scripts/try_wheel.py")
    needs = {name: job.get("needs") for name, job in workflow()["jobs"].items()}
    assert needs == {"wheel": None, "pypi": "wheel", "image": "wheel", "chart": "image"}


def test_the_images_are_built_on_the_digest_of_the_base_image(tmp_path: Path) -> None:
    for failure in ("exit 1", "echo Name: python"):
        with pytest.raises(subprocess.CalledProcessError):
            run_step("image", "base", tmp_path, docker=failure)
    digest = run_step("image", "base", tmp_path, docker=f"echo '\"sha256:{'1' * 64}\"'")
    assert digest == f"base=python:3.13-slim@sha256:{'1' * 64}\n"
    (build,) = [step["with"] for step in steps("image") if step.get("id") == "build"]
    assert build["build-args"] == "BASE=${{ steps.base.outputs.base }}"
    assert "\nARG BASE=python:3.13-slim\n" in (ROOT / "deploy" / "Dockerfile").read_text()


def test_the_chart_names_the_images_of_the_release_by_digest(tmp_path: Path) -> None:
    values = tmp_path / "deploy" / "helm" / "coe" / "values.yaml"
    values.parent.mkdir(parents=True)
    shutil.copy(ROOT / "deploy" / "helm" / "coe" / "values.yaml", values)
    digests = {name: "sha256:" + number * 64 for name, number in (("GATEWAY", "a"), ("JOBS", "b"))}
    with pytest.raises(subprocess.CalledProcessError):
        run_step("chart", "The chart names the images", tmp_path, **digests | {"JOBS": ""})
    shutil.copy(ROOT / "deploy" / "helm" / "coe" / "values.yaml", values)
    run_step("chart", "The chart names the images", tmp_path, **digests)
    written = YAML(typ="safe").load(values)
    assert (written["image"]["digest"], written["jobsImage"]["digest"]) == tuple(digests.values())
    assert written["jobsImage"]["repository"] == "ghcr.io/owner/name/coe-jobs"


def run_step(job: str, name: str, folder: Path, *, docker: str = "exit 1", **environ: str) -> str:
    """Run the script of the step with this id or start of its name. Returns its outputs."""
    (step,) = [step for step in steps(job) if step.get("id") == name or step.get("name", "").startswith(name)]
    (folder / "docker").write_text(f"#!/bin/sh\n{docker}\n")
    (folder / "docker").chmod(0o755)
    environ |= {"PATH": f"{folder}:{os.environ['PATH']}", "GITHUB_OUTPUT": str(folder / "output")}
    where = folder if (folder / "deploy").exists() else ROOT
    script = ["bash", "-e", "-c", step["run"]]
    subprocess.run(script, env=environ | {"GITHUB_REPOSITORY": "Owner/Name"}, cwd=where, check=True)
    return (folder / "output").read_text() if (folder / "output").exists() else ""


@pytest.mark.parametrize("line", ["version: {}", 'appVersion: "{}"'])
def test_package_and_chart_have_one_version(line: str) -> None:
    """The workflow compares both with the tag, by these lines."""
    chart = (ROOT / "deploy" / "helm" / "coe" / "Chart.yaml").read_text().splitlines()
    assert line.format(coe.__version__) in chart
    assert f'__version__ = "{coe.__version__}"' in (ROOT / "coe" / "__init__.py").read_text().splitlines()
