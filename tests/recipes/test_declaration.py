"""The section `recipes` of experts.yaml: what is accepted, what each mistake says, and the arms that follow."""

from pathlib import Path

import pytest

from coe import registry
from coe.errors import ConfigError
from coe.registry import RecipeSpec
from tests.fakes import registry_of

BEFORE = """\
version: 1
policy: {max_calls: 3}
categories:
  - {name: code, description: programs}
  - {name: general, description: the rest}
experts:
  - {name: a, model: m, runtime: external, base_url: "http://localhost:1/v1"}
  - {name: b, model: m, runtime: external, base_url: "http://localhost:1/v1"}
  - {name: c, model: m, runtime: external, base_url: "http://localhost:1/v1"}
  - {name: d, model: m, runtime: external, base_url: "http://localhost:1/v1"}
  - {name: vectors, model: m, runtime: external, base_url: "http://localhost:1/v1", apis: [embeddings]}
  - name: short
    model: m
    runtime: external
    base_url: "http://localhost:1/v1"
    context_length: 1024
  - {name: german, model: m, runtime: external, base_url: "http://localhost:1/v1", languages: [de]}
  - {name: french, model: m, runtime: external, base_url: "http://localhost:1/v1", languages: [fr]}
assignment: {general: a}
recipes:
"""
FIRST = BEFORE.count("\n") + 1
"""The line of the first recipe."""


def load(tmp_path: Path, recipes: str) -> registry.Registry:
    path = tmp_path / "experts.yaml"
    path.write_text(BEFORE + recipes + "\n")
    return registry.load(path, environ={})


@pytest.mark.parametrize(
    ("recipe", "problem"),
    [
        ("{name: x, cascade: [[a, b], cc]}", "unknown expert 'cc'; did you mean 'c'?"),
        (
            "{name: x, cascade: [a, x]}",
            "a recipe cannot contain itself; the members are experts: a, b, c, d, vectors, short, german, french",
        ),
        (
            "{name: x, cascade: [[a, b], a]}",
            "'a' is a member already; each is called once, and none is the judge; remove",
        ),
        ("{name: code, vote: [a, b]}", "'code' is a category already; choose another name for the recipe"),
        ("{name: auto-12, vote: [a, b]}", "the name 'auto-12' is reserved; choose another name for the recipe"),
        (
            "{name: x, cascade: [[a, german], french]}",
            "the members of 'x' have no language in common; add one to their `languages`, or use other members",
        ),
        ("{name: x, vote: [a, vectors]}", "'vectors' does not support the chat API, which all members need"),
        (
            "{name: x, vote: [a, b, c, d]}",
            "recipe 'x' makes up to 4 calls and policy.max_calls allows 3; remove members",
        ),
        ("{name: x, vote: [a, b], max_loss: 0.5}", "'x' has one step, so `max_loss` has no effect"),
        ("{name: x, cascad: [a, b]}", "unknown key 'cascad'; did you mean 'cascade'?"),
        ("{name: x, cascade: [a, b], vote: [a, b]}", "recipe 'x' needs one of `cascade`, `vote`, `chain` and `fuse`"),
        ("{name: x, vote: [a]}", "recipe 'x' needs two members; add one, or pin the expert"),
        ("{name: x, fuse: [a, b]}", "'x' needs `by`: the expert that writes the answer from those of the others"),
        ("{name: x, chain: [a, b], by: c}", "`by` is for a fuse, and 'x' is a chain; remove it"),
        ("{name: x, cascade: [a, b], judge: c}", "'x' needs `signal: judge` and `judge`, the expert that grades"),
        ("{name: x, vote: [a, b], signal: judge, judge: c}", "`judge` is for a cascade, and 'x' is a vote; remove it"),
        (
            "{name: x, cascade: [a, b], signal: judge, judge: short}",
            "'short' has a context of 1024 tokens, and a judge's request needs 4200; use another expert",
        ),
        (
            "{name: x, cascade: [a, b, c], signal: judge, judge: d}",
            "recipe 'x' makes up to 5 calls and policy.max_calls allows 3; remove members or raise it",
        ),
        ("3", "recipes.0: expected a recipe or the word auto"),
    ],
)
def test_a_mistake_is_reported_with_its_line_and_remedy(tmp_path: Path, recipe: str, problem: str) -> None:
    with pytest.raises(ConfigError) as error:
        load(tmp_path, f"  - {recipe}")
    assert f"experts.yaml:{FIRST}: {problem}" in str(error.value)


def test_a_cascade_has_steps_of_one_or_several_members_and_a_vote_asks_at_once_or_in_turn(tmp_path: Path) -> None:
    cascade, all_at_once, in_turn = load(
        tmp_path,
        "  - {name: x, cascade: [[a, b], c], max_loss: 0.01}\n  - {name: y, vote: [a, b]}\n"
        "  - {name: z, vote: [a, b], ask: until_agreed}",
    ).declared_recipes
    assert cascade.steps == (("a", "b"), ("c",))
    assert all_at_once.steps == (("a", "b"),)
    assert in_turn.steps == (("a",), ("b",))


def test_arms_follow_the_experts_and_have_what_all_members_have() -> None:
    local = {"model": "m", "runtime": "external", "base_url": "http://127.0.0.1:9/v1"}
    declared = registry_of(
        experts=[
            {"name": "coder", "capabilities": ["tools", "json_schema", "images"], "context_length": 4000, **local},
            {"name": "painter", "capabilities": ["tools", "json_schema"], **local},
            {"name": "generalist", "capabilities": ["tools", "images", "audio"], **local},
        ],
        recipes=[
            {"name": "careful", "cascade": [["coder", "painter"], "generalist"]},
            {"name": "p", "vote": ["coder", "painter"]},
        ],
    )
    assert declared.arm("coder") is declared.expert("coder")
    arm, panel = declared.recipe_arms
    assert (arm.name, arm.steps) == ("careful", (("coder", "painter"), ("generalist",)))
    assert (arm.capabilities, arm.context_length, arm.supported_apis) == (frozenset(), 4000, {"chat"})
    assert panel.capabilities == {"json_schema"}
    assert declared.model_names == ("coder", "painter", "generalist", "careful", "p")


def test_a_chain_and_a_fuse_are_steps_whose_later_members_keep_room_for_drafts(tmp_path: Path) -> None:
    declared = load(
        tmp_path,
        "  - {name: x, chain: [a, b, a]}\n  - {name: y, fuse: [a, b], by: a}\n"
        "  - {name: z, chain: [a, b], instruction: i}",
    )
    chain, fuse, other = declared.declared_recipes
    assert (chain.steps, fuse.steps) == ((("a",), ("b",), ("a",)), (("a", "b"), ("a",)))
    assert declared.model_names[-3:] == ("x", "y", "z")
    assert declared.arm("x").context_length == 0.75 * declared.expert("a").context_length
    assert len({one.writing_digest for one in (chain, fuse, other)}) == 3
    assert RecipeSpec(name="v", vote=("a", "b")).writing_digest == ""
