"""`coe train` and `coe route` from declaration to decision, with an encoder that trains in seconds."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from coe.artifacts.store import ArtifactStore
from coe.cli import train
from coe.errors import ArtifactError, DataError
from coe.learning import router_comparison
from coe.learning.router_comparison import Comparison
from tests.cli.command import run
from tests.routers.conftest import WORDS, examples

DECLARED = """\
version: 1
categories:
  - {name: cooking, description: food}
  - {name: astronomy, description: sky}
  - {name: football, description: sport}
  - name: general
    description: the rest
    examples: [%s]
experts:
  - {name: chef, model: m, runtime: external, base_url: 'http://127.0.0.1:9/v1'}
  - {name: generalist, model: m, runtime: external, base_url: 'http://127.0.0.1:9/v1'}
assignment: {cooking: chef, general: generalist}
router: {training_data: prompts.jsonl, encoder: %s}
"""
RULES = """\
rules:
  - {name: agents, when: {tools: [Bash], client: "claude-*"}, category: general}
  - {name: poets, when: {system: a poet}, expert: generalist}
"""
CHAT = ", ".join(f"hello there {word}" for word in WORDS["cooking"])


@pytest.fixture
def config(tmp_path: Path, tiny_encoder: Path, exported: None) -> Path:
    lines = [json.dumps({"prompt": e.prompt, "category": e.category}) for e in examples()]
    (tmp_path / "prompts.jsonl").write_text("\n".join(lines))
    (tmp_path / "experts.yaml").write_text(DECLARED % (CHAT, tiny_encoder))
    return tmp_path / "experts.yaml"


def test_declared_examples_train_a_router_that_routes(config: Path) -> None:
    file = config.with_name("prompts.jsonl")
    first = json.loads(file.read_text().splitlines()[0])
    odd = [first, {**first, "prompt": "bake a star"}, {"prompt": "bake a star", "category": "football"}]
    file.write_text("\n".join([file.read_text(), *map(json.dumps, odd), ""]))
    report = json.loads(run("train", "--config", config, "--json"))
    assert report["metrics"]["dropped"] == {"blank": 0, "duplicate": 1, "contradictory": 1}
    assert set(report["metrics"]["accuracy_by_category"]) == {*WORDS, "general"}
    manifest = json.loads((Path(report["folder"]) / "manifest.json").read_text())
    assert manifest["metrics"]["reliability"]
    decision = json.loads(run("route", "how do i bake the bread dough", "--config", config, "--json"))
    assert (decision["expert"], decision["category"]) == ("chef", "cooking")
    assert "chef" in run("route", "how do i bake the bread dough", "--config", config)
    wrapped = "Answer the question.\n\nQuestion: how do i bake the bread dough\n\nAnswer:"
    explained = run("route", wrapped, "--explain", "--config", config)
    assert "text        how do i bake the bread dough\n" in explained
    assert "message 0: frame left out, 38 characters" in explained
    assert (
        json.loads(run("route", wrapped, "--explain", "--json", "--config", config))["left_out"][0]["kind"] == "frame"
    )

    lines = [
        {"id": 7, "prompt": "explain the comet orbit", "category": "own", "expert": "own"},
        {"messages": [{"role": "user", "content": "roast the onion"}]},
    ]
    source, target = config.with_name("in.jsonl"), config.with_name("out.jsonl")
    source.write_text("\n \n\n".join(map(json.dumps, lines)) + "\n\n")
    run("route", "--input", source, "--output", target, "--config", config)
    first, second = map(json.loads, target.read_text().splitlines())
    assert (first.pop("decision")["category"], second.pop("decision")["expert"]) == ("astronomy", "chef")
    assert [first, second] == lines

    source.write_text('{"prompt": "fine"}\n\n{"text": "no prompt"}\n')
    with pytest.raises(DataError, match=r"in\.jsonl:3: expected JSON with prompt or messages"):
        run("route", "--input", source, "--config", config)
    source.write_text('{"prompt": "fine"}\n{')
    with pytest.raises(DataError, match=r"in\.jsonl:2: not JSON"):
        run("route", "--input", source, "--config", config)


def test_a_router_that_is_worse_is_published_and_not_put_into_use(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = json.loads(run("train", "--config", config, "--json"))
    assert (first["in_use"], first["comparison"]) == (True, "none is in use")
    chess = ", ".join(f"pawn takes the rook {n}" for n in range(12))
    config.write_text(
        config.read_text().replace(
            "experts:\n", f"  - {{name: chess, description: moves, examples: [{chess}]}}\nexperts:\n"
        )
    )
    compared = []

    def judge(*given: Any) -> Comparison:
        compared.append(router_comparison.judge(*given))
        return replace(compared[0], is_loss=True)

    monkeypatch.setattr(train, "judge", judge)
    second = json.loads(run("train", "--config", config, "--json"))
    assert (second["in_use"], compared[0].is_loss) == (False, False)
    assert compared[0].prompts > 100
    assert "on the same" in second["comparison"]
    assert set(second["metrics"]["accuracy_by_category"]) == {*WORDS, "general", "chess"}
    assert ArtifactStore(config.with_name(".coe") / "artifacts", "router").in_use() == first["version"]
    assert Path(second["folder"]).is_dir()


def test_a_plan_takes_effect_and_is_dropped_and_rules_are_tried(config: Path) -> None:
    config.write_text(config.read_text() + "budget: {max_share: 0.9}\npolicy: {confidence_threshold: 0}\n")
    run("train", "--config", config)
    folder = config.with_name("quality")
    folder.mkdir()
    prompts, scores = [], []
    for number, example in enumerate(examples(count=20)):
        one = {"benchmark": "own", "prompt_id": str(number)}
        prompts.append({**one, "prompt": example.prompt, "category": example.category, "label": ""})
        right = "chef" if example.category in ("cooking", "football") else "generalist"
        scores += [{**one, "model": name, "score": float(name == right)} for name in ("chef", "generalist")]
    (folder / "prompts.jsonl").write_text("\n".join(map(json.dumps, prompts)))
    (folder / "scores.jsonl").write_text("\n".join(map(json.dumps, scores)))
    text = "the striker and the goal keeper"
    before = json.loads(run("route", text, "--config", config, "--json"))
    run("plan", folder, "--config", config)
    planned = json.loads(run("route", text, "--config", config, "--json"))
    run("plan", "--forget", "--config", config)
    after = json.loads(run("route", text, "--config", config, "--json"))
    assert planned["category"] == before["category"] == "football"
    assert (before["expert"], planned["expert"], after["expert"]) == ("generalist", "chef", "generalist")

    config.write_text(config.read_text().replace("external,", "external, capabilities: [tools],") + RULES)

    def routed(*before: dict[str, str], tool: str = "") -> list[str]:
        row: dict[str, Any] = {"messages": [*before, {"role": "user", "content": "how do i bake the bread dough"}]}
        if tool:
            row["tools"] = [{"type": "function", "function": {"name": tool}}]
        source = config.with_name("request.jsonl")
        source.write_text(json.dumps(row))
        found = json.loads(run("route", "--input", source, "--client", "claude-cli", "--config", config))["decision"]
        return [found[name] for name in ("expert", "reason", "rule")]

    poet = {"role": "system", "content": "You are a poet"}
    assert routed() == ["chef", "routed", ""]
    assert routed(poet) == ["generalist", "rule", "poets"]
    assert routed(tool="Edit") == ["chef", "routed", ""]
    assert routed(tool="Bash") == ["generalist", "routed", "agents"]


def test_routing_before_training_names_the_command(config: Path) -> None:
    with pytest.raises(ArtifactError, match="run `coe train`"):
        run("route", "hello", "--config", config)
