"""The committed reference pages equal those generated from the code, and are complete."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from scripts import reference
from scripts.reference import environment, errors, experts_yaml, headers, http_api, metrics


def test_the_committed_files_are_up_to_date() -> None:
    assert reference.outdated() == [], "run: make reference"


@pytest.mark.parametrize("change", ["edit", "add"])
def test_a_file_that_differs_is_named(tmp_path: Path, change: str) -> None:
    folder = tmp_path / "reference"
    shutil.copytree(reference.FOLDER, folder)
    shutil.copy(reference.FOLDER.parent / reference.SCHEMA, tmp_path)
    page = folder / "cli.md"
    if change == "edit":
        page.write_text(page.read_text().replace("coe check", "coe chek", 1))
    else:
        page = folder / "old.md"
        page.write_text("# Old\n")
    assert [Path(name).name for name in reference.outdated(folder)] == [page.name]
    reference.write(folder)
    assert reference.outdated(folder) == []


def test_no_error_code_is_described_that_does_not_exist() -> None:
    assert errors.surplus() == set()


def test_the_names_that_other_pages_are_checked_by_are_there() -> None:
    assert "policy.exploration.rate" in experts_yaml.key_paths()
    assert "access.keys.limits.dollars_per_day" in experts_yaml.key_paths()
    assert "x-coe-expert" in headers.names()
    assert "coe_routing_seconds_bucket" in metrics.names()
    assert "coe_breaker_state" in metrics.names()
    assert "/v1/records/{id}" in http_api.paths()
    assert {"COE_HOME", "COE_PORT", "OTEL_EXPORTER_OTLP_ENDPOINT"} <= environment.names()


def test_tables_are_whole() -> None:
    """Every row of a table has as many cells as its head, whatever the descriptions hold."""
    for name, text in reference.pages().items():
        width = 0
        for line in text.replace("\\|", "").splitlines():
            cells = line.count("|") if line.startswith("|") else 0
            assert cells == width or not width or not cells, (name, line)
            width = cells
