"""Prompts that `router.extra_training_data` adds to a training set: duplicates, conflicts and mistakes, by line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from coe.errors import DataError
from coe.learning.router_round import add_prompts, training_pairs
from coe.registry import load

BASE = [("What is a lien?", "law"), ("Add 2 and 3", "math"), ("Hi", "general")]
NAMES = ("law", "math", "general")


def file_of(folder: Path, *rows: tuple[str, str]) -> Path:
    path = folder / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": p, "category": c}) + "\n" for p, c in rows))
    return path


def test_duplicates_are_added_once_and_conflicts_are_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = file_of(
        tmp_path,
        ("What is tort?", "law"),
        ("  What is tort? ", "law"),
        ("Add 2 and 3", "math"),
        ("Hi", "law"),
        ("Prove it", "math"),
        ("Prove it", "law"),
        ("Prove it", "math"),
        ("Add 2 and 3", "general"),
        (" ", "law"),
    )
    added = add_prompts(BASE, path, categories=NAMES)
    assert added == [*BASE[:2], ("What is tort?", "law"), ("Hi", "law")]  # line 8 leaves that of the set
    assert "2 prompts have several categories and are left out" in capsys.readouterr().err


def test_a_category_that_is_not_declared_is_refused_with_its_line(tmp_path: Path) -> None:
    path = file_of(tmp_path, ("What is tort?", "law"), ("Sue", "laws"))
    with pytest.raises(DataError, match=r"prompts.jsonl:2: category 'laws' is not declared"):
        add_prompts(BASE, path, categories=NAMES)


def test_the_starter_prompts_stay_and_the_declared_file_is_always_added(tmp_path: Path) -> None:
    file_of(tmp_path, ("What do you charge for the blue one?", "law"))
    declared = (
        "version: 1\ncategories: [{name: law, description: l}, {name: general, description: g}]\n"
        "experts: [{name: a, model: m, runtime: external, base_url: 'http://127.0.0.1:9/v1'}]\n"
        "assignment: {general: a}\nrouter: {extra_training_data: prompts.jsonl}\n"
    )
    (tmp_path / "experts.yaml").write_text(declared)
    registry = load(tmp_path / "experts.yaml", environ={})
    pairs = training_pairs(registry, base=tmp_path, data=None)
    assert len(pairs) > 100
    assert pairs[-1] == ("What do you charge for the blue one?", "law")
