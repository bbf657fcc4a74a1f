"""The training texts nearest to a text, and their digests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import routers
from coe.errors import ArtifactError
from routers.cascade import EXEMPLARS
from tests.routers.conftest import WORDS, examples, sentences

Built = tuple[Path, dict[str, Any], list[Any]]


def test_a_training_text_is_its_own_nearest_neighbour_and_found_by_its_digest(built: Built) -> None:
    router = routers.load(built[0])
    by_digest = {routers.prompt_digest(one.prompt): one for one in examples()}
    one = examples()[7]
    found = router.neighbours(one.prompt, limit=5)
    assert len(found) == 5
    assert found[0].similarity == pytest.approx(1.0, abs=0.02)  # the tables are float16
    assert [near.similarity for near in found] == sorted((near.similarity for near in found), reverse=True)
    assert one.prompt in {by_digest[near.digest].prompt for near in found}
    assert all(by_digest[near.digest].category == near.category for near in found)


def test_new_categories_have_neighbours_too_and_dropped_ones_are_general(built: Built) -> None:
    chess = sentences("chess", count=8, seed=9)
    kept = sorted(WORDS)[1:]
    router = routers.load(built[0], declared=dict.fromkeys(kept, ()) | {"general": (), "chess": chess})
    (nearest, *_) = router.neighbours(chess[0], limit=3)
    assert (nearest.category, nearest.digest) == ("chess", routers.prompt_digest(chess[0]))
    dropped = next(one.prompt for one in examples() if one.category == sorted(WORDS)[0])
    assert {near.category for near in router.neighbours(dropped, limit=3)} <= {"general", "chess", *kept}


@pytest.mark.parametrize("name", ["language_prompts", "language_prompts_fresh", "language_prompts_third"])
def test_no_test_prompt_in_another_language_is_a_starter_prompt(name: str) -> None:
    known = {routers.prompt_digest(one.prompt) for one in routers.starter_examples()}
    file = Path(__file__).parents[2] / "benchmarks" / f"{name}.jsonl"
    prompts = [json.loads(line)["prompt"] for line in file.read_text(encoding="utf-8").splitlines()]
    assert [prompt for prompt in prompts if routers.prompt_digest(prompt) in known] == []


@pytest.mark.parametrize("name", ["labels", "centre"])
def test_tables_that_do_not_fit_the_vectors_are_refused(folder: Path, name: str) -> None:
    with np.load(folder / "semantic.npz") as tables:
        kept = {key: tables[key] for key in tables.files}
    np.savez(folder / "semantic.npz", **kept | {name: kept[name][:1]})
    with pytest.raises(ArtifactError, match=f"{name}: .*train the router again"):
        routers.load(folder)


def test_digests_that_do_not_fit_the_vectors_are_refused(folder: Path) -> None:
    (folder / EXEMPLARS).write_text(json.dumps({"digests": ["one"]}))
    with pytest.raises(ArtifactError, match="train the router again"):
        routers.load(folder)
