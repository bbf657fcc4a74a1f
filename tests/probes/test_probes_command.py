"""`coe probes` and `coe score` without a file of probes, as a user runs them."""

import json
from collections.abc import AsyncIterator
from pathlib import Path

import anyio.to_thread
import pytest
from pyarrow import parquet
from typer.testing import CliRunner, Result

from coe.cli import app
from tests.score.answering import AnsweringServer

CATEGORIES = ("math", "humanities", "general", "cooking")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    declare(tmp_path, 9)
    return tmp_path


def declare(folder: Path, port: int) -> None:
    categories = ", ".join(f"{{name: {name}, description: d, examples: [a b, c d]}}" for name in CATEGORIES)
    (folder / "experts.yaml").write_text(
        f"version: 1\ncategories: [{categories}]\nexperts: [{{name: one, model: m, runtime: external, "
        f"base_url: 'http://127.0.0.1:{port}/v1'}}]\nassignment: {{general: one}}\n"
    )


def run(*words: str) -> Result:
    return CliRunner().invoke(app, ["probes", *words])


def own(home: Path) -> Path:
    return home / "probes.jsonl"


def test_probes_are_counted_and_listed_and_an_own_probe_replaces_the_shipped_one_of_its_id(home: Path) -> None:
    row = {"id": "humanities-01", "prompt": "Mine?", "category": "humanities", "checker": "exact", "reference": "x"}
    own(home).write_text(f"{json.dumps(row)}\n")
    counts = run().output.splitlines()
    assert counts[1].split() == ["math", "40", "13", "14", "13"]
    assert counts[4].split() == ["cooking", "0", "0", "0", "0"]
    assert len(run("--category", "humanities").output.splitlines()) == 41
    listed = {one["prompt_id"]: one for one in json.loads(run("--json").output)["probes"]}
    assert listed["humanities-01"]["prompt"] == "Mine?"


@pytest.fixture
async def server(anyio_backend: str) -> AsyncIterator[AnsweringServer]:
    async with AnsweringServer({"m": lambda text: "10"}).running() as server:
        yield server


async def score(*words: str) -> Result:
    command = ["score", "--out", "quality", "--json", *words]
    return await anyio.to_thread.run_sync(lambda: CliRunner().invoke(app, command))


def asked(server: AnsweringServer) -> list[str]:
    found = [body["messages"][-1]["content"] for body in server.bodies]
    server.bodies.clear()
    return found


@pytest.mark.anyio
async def test_score_uses_shipped_and_own_probes(home: Path, server: AnsweringServer) -> None:
    declare(home, server.port)
    row = {"prompt": "How long does an egg boil?", "category": "cooking", "checker": "numeric", "reference": "10"}
    own(home).write_text(json.dumps(row | {"difficulty": "easy"}))
    first = await score()
    assert first.exit_code == 0, first.output
    assert "note: no probes for" not in first.stderr
    report = json.loads(first.stdout)
    assert report["probes"] == 121
    column = report["experts"]["one"]
    assert column["categories"]["cooking"] == {"n": 1, "mean": 1.0}
    assert len(asked(server)) == 121
    prompts = parquet.read_table("quality/prompts.parquet").to_pydict()
    assert set(prompts["benchmark"]) == {"shipped"}
    assert (await score()).exit_code == 0
    assert asked(server) == []


@pytest.mark.anyio
async def test_without_bubblewrap_the_default_probes_that_run_code_are_left_out(
    home: Path, server: AnsweringServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("coe.cli.score.installed", lambda: False)
    declare(home, server.port)
    path = home / "experts.yaml"
    path.write_text(path.read_text().replace("name: math", "name: code"))
    result = await score()
    assert result.exit_code == 0
    assert "note: no probes for cooking" in result.stderr
    assert "note: probes that run code are left out; the sandbox needs bubblewrap" in result.stderr
    assert json.loads(result.stdout)["experts"]["one"]["categories"]["code"]["n"] == 7
