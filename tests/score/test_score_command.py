"""`coe score` as a user runs it: real sockets, and a process of its own where it is stopped or killed in the middle."""

import asyncio
import json
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyarrow import parquet
from typer.testing import CliRunner

from coe.cli import app
from coe.measuring.quality import read_quality
from coe.measuring.recorded_answers import read_answers
from coe.measuring.scoring_run import Journal
from tests import forked
from tests.score.answering import AnsweringServer

pytestmark = pytest.mark.anyio

COUNT = 24
FILES = ("prompts.parquet", "scores.parquet", "models.parquet")
PROBES = [
    {"id": f"q{n}", "prompt": f"What is {n} + 1?", "category": "math", "checker": "numeric", "reference": n + 1}
    for n in range(COUNT)
]


def adds(text: str) -> str:
    return f"It is {int(text.split()[2]) + 1}."


def adds_when_even(text: str) -> str:
    number = int(text.split()[2])
    return str(number + 1) if number % 2 == 0 else "I do not know"


def refuses_the_last(text: str) -> str | int:
    return 400 if f" {COUNT - 1} " in text else adds(text)


@dataclass
class ScoreCommand:
    server: AnsweringServer
    folder: Path

    def declare(self, *, local: bool = False) -> None:
        """Two external experts, and a local one that is reached through the gateway."""
        external = f"runtime: external, base_url: 'http://127.0.0.1:{self.server.port}/v1'"
        experts = [
            f"{{name: small, model: m-small, {external}, system_prompt: Add., active_parameters_b: 0.5}}",
            f"{{name: large, model: m-large, {external}, prices: {{input: 2, output: 8}}}}",
            *(["{name: own, model: folder, runtime: transformers, system_prompt: Add.}"] if local else []),
        ]
        (self.folder / "experts.yaml").write_text(
            "version: 1\ncategories: [{name: math, description: m}, {name: general, description: g}]\n"
            f"experts: [{', '.join(experts)}]\nassignment: {{general: small}}\n"
        )

    def words(self, out: str = "out") -> list[str]:
        """The command line, without options of a test."""
        options = ["--out", str(self.folder / out), "--config", str(self.folder / "experts.yaml"), "--json"]
        return ["score", str(self.folder / "probes.jsonl"), *options]

    async def start(self, *words: str) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            *forked.python("coe.cli", *self.words(), *words),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={"PATH": "/usr/bin:/bin"},
            # Shells start background jobs with SIGINT ignored, and children inherit that.
            preexec_fn=forked.restore_interrupts,
        )

    async def run(self, *words: str, out: str = "out", port: int = 0) -> tuple[int, dict[str, Any], str]:
        """Exit code, report, and what else the command said; in a thread, since it has an event loop of its own."""
        env = {"COE_PORT": str(port or self.server.port)}
        found = await asyncio.to_thread(CliRunner().invoke, app, [*self.words(out), *words], env=env)
        said = f"{found.stderr}{found.exception or ''}"
        return found.exit_code, json.loads(found.stdout or "{}"), said

    def files(self, out: str = "out") -> dict[str, list[dict[str, Any]]]:
        """The rows of the files, without the times of the scores."""
        tables = {name: parquet.read_table(self.folder / out / name).to_pylist() for name in FILES}
        return {name: [{**row, "time": None} for row in rows] for name, rows in tables.items()}

    def noted(self) -> int:
        """Lines of the journal."""
        path = self.folder / "out" / "journal.jsonl"
        return path.read_bytes().count(b"\n") if path.exists() else 0


@pytest.fixture
async def command(anyio_backend: str, tmp_path: Path) -> AsyncIterator[ScoreCommand]:
    answers = {"m-small": adds_when_even, "m-large": adds, "own": refuses_the_last}
    async with AnsweringServer(answers).running() as server:
        command = ScoreCommand(server, tmp_path)
        command.declare()
        (tmp_path / "probes.jsonl").write_text("".join(f"{json.dumps(probe)}\n" for probe in PROBES))
        yield command


async def until_noted(command: ScoreCommand, lines: int) -> None:
    async with asyncio.timeout(60):
        while command.noted() < lines:
            await asyncio.sleep(0.02)


async def test_quality_data_is_written_as_the_planner_reads_it(command: ScoreCommand) -> None:
    code, report, output = await command.run()
    assert (code, report["missing"], output) == (0, 0, "")
    quality = read_quality(command.folder / "out")
    assert quality.benchmark == "probes"
    assert quality.models == ("large", "small")
    assert set(quality.categories) == {"math"}
    assert quality.scores.mean(axis=0).tolist() == [1.0, 0.5]
    assert quality.active_b[1] == 0.5
    assert quality.prompts[3] == "What is 3 + 1?"
    tokens = [quality.uses[name] for name in ("input_tokens", "output_tokens")]
    assert [set(values.ravel().tolist()) for values in tokens] == [{3.0}, {5.0}]  # as the server reports them
    assert (quality.uses["latency_ms"] > 0).all()
    assert np.isnan(quality.active_b[0])


async def test_answers_are_written_beside_the_scores_as_the_planner_reads_them(command: ScoreCommand) -> None:
    await command.run()
    out = command.folder / "out"
    table = parquet.read_table(out / "answers.parquet")
    rows = {(row["prompt_id"], row["model"]): row for row in table.to_pylist()}
    assert table.num_rows == len(rows) == 2 * COUNT
    large, small = rows["q4", "large"], rows["q5", "small"]
    assert large.pop("latency_ms") > 0
    assert large == {
        "benchmark": "probes",
        "prompt_id": "q4",
        "model": "large",
        "answer": "5",
        "input_tokens": 3,
        "output_tokens": 5,
        "output_chars": 8,
        "cost": pytest.approx(46e-6),
    }
    assert (small["answer"], small["cost"]) == (None, 0.0)
    found = read_answers(out, read_quality(out))
    assert found is not None
    assert found.recorded.all()
    assert (found.tokens == 5).all()
    assert found.classes.tolist() == [[0, 0] if number % 2 == 0 else [0, -1] for number in range(COUNT)]


async def test_a_killed_run_continues_and_ends_with_the_same_files(command: ScoreCommand) -> None:
    await command.run(out="whole")
    command.server.bodies.clear()
    command.server.hold(after=20)
    process = await command.start("--concurrency", "3")
    await until_noted(command, 20)
    process.kill()
    await process.communicate()
    command.server.release.set()
    command.server.bodies.clear()
    code, report, _ = await command.run()
    assert code == 0
    assert len(command.server.bodies) == 2 * COUNT - 20
    assert report["missing"] == 0
    assert command.files() == command.files("whole")
    resumed, whole = (
        parquet.read_table(command.folder / out / "answers.parquet").drop_columns(["latency_ms"])
        for out in ("out", "whole")
    )
    assert resumed.equals(whole)


async def test_ctrl_c_writes_the_scores_so_far_and_names_how_to_continue(command: ScoreCommand) -> None:
    command.server.hold(after=10)
    process = await command.start("--concurrency", "2")
    await until_noted(command, 10)
    process.send_signal(signal.SIGINT)
    output, complaints = await asyncio.wait_for(process.communicate(), 240)
    report = json.loads(output)
    assert (process.returncode, report["stopped"], report["missing"]) == (1, True, 2 * COUNT - 10)
    assert b"Traceback" not in complaints
    assert parquet.read_table(command.folder / "out" / "scores.parquet").num_rows == 10
    assert parquet.read_table(command.folder / "out" / "prompts.parquet").num_rows == COUNT


async def test_a_local_expert_is_reached_through_the_gateway_and_a_failure_is_reported(command: ScoreCommand) -> None:
    command.declare(local=True)
    code, report, output = await command.run("--expert", "own")
    assert code == 1
    assert report["missing"] == 1
    own = report["experts"]["own"]
    assert (own["mean"], own["errors"]) == (1.0, {"expert_rejected": 1})
    assert "own: probe q23 has no score: expert 'own' rejected the request: because I say so" in output
    rows = parquet.read_table(command.folder / "out" / "scores.parquet").to_pylist()
    assert len(rows) == COUNT - 1
    body = command.server.bodies[0]
    assert body["model"] == "own"
    assert [turn["role"] for turn in body["messages"]] == ["user"]  # the gateway adds the system prompt itself


async def test_an_expert_scored_later_joins_the_earlier_ones_and_a_changed_one_is_scored_again(
    command: ScoreCommand,
) -> None:
    await command.run("--expert", "small")
    code, report, _ = await command.run("--expert", "large")
    assert code == 0
    assert list(report["experts"]) == ["large"]
    assert read_quality(command.folder / "out").models == ("large", "small")
    path = command.folder / "experts.yaml"
    path.write_text(path.read_text().replace("system_prompt: Add.", "system_prompt: Add well."))
    command.server.bodies.clear()
    await command.run()
    assert len(command.server.bodies) == COUNT
    assert command.server.bodies[0]["messages"][0] == {"role": "system", "content": "Add well."}
    command.server.bodies.clear()
    before = read_quality(command.folder / "out").measured_at
    await command.run("--again", "small")
    after = read_quality(command.folder / "out").measured_at
    assert len(command.server.bodies) == COUNT
    assert (after["small"] > before["small"], after["large"]) == (True, before["large"])


async def test_a_missing_gateway_is_reported_before_any_request(command: ScoreCommand) -> None:
    command.declare(local=True)
    code, _, output = await command.run(port=1)
    assert code == 1
    assert "own: reached through the gateway, and nothing answers at http://127.0.0.1:1; is `coe up` running?" in output
    assert command.server.bodies == []


async def test_an_expert_of_litellm_is_reached_through_the_gateway_whatever_its_address_is(
    command: ScoreCommand,
) -> None:
    path = command.folder / "experts.yaml"
    path.write_text(path.read_text().replace("model: m-small, runtime: external", "model: openai/m1, runtime: litellm"))
    command.server.models["small"] = adds
    _, report, _ = await command.run("--expert", "small")
    assert report["experts"]["small"]["mean"] == 1.0
    assert {body["model"] for body in command.server.bodies} == {"small"}


async def test_a_limit_goes_out_under_the_name_that_the_server_accepts(command: ScoreCommand) -> None:
    command.declare(local=True)
    path = command.folder / "experts.yaml"
    path.write_text(f"{path.read_text()}recipes: [{{name: g, cascade: [small, large], signal: judge, judge: own}}]\n")
    command.server.newer.add("own")
    command.server.models["own"] = lambda _: "9"
    code, report, output = await command.run("--recipe", "g")
    assert (code, report["missing"]) == (0, 0), output
    limits = [body for body in command.server.bodies if "max_completion_tokens" in body]
    assert len(limits) == COUNT


async def test_bad_usage_and_bad_data_are_refused(command: ScoreCommand) -> None:
    code, _, output = await command.run("--expert", "medium")
    assert code == 2
    assert "medium" in output
    with (command.folder / "probes.jsonl").open("a") as file:
        file.write(json.dumps({"prompt": "poem", "category": "general", "checker": "judge"}) + "\n")
    assert (await command.run())[0] == 2


@pytest.mark.parametrize("name", ["prompts.parquet", "answers.csv"])
async def test_quality_data_from_elsewhere_is_not_overwritten(command: ScoreCommand, name: str) -> None:
    (command.folder / "theirs").mkdir()
    (command.folder / "theirs" / name).write_text("precious")
    code, _, output = await command.run(out="theirs")
    assert code == 1
    assert "did not write; choose another folder" in output
    assert [path.name for path in (command.folder / "theirs").iterdir()] == [name]


async def test_two_runs_do_not_share_a_folder(command: ScoreCommand) -> None:
    (command.folder / "out").mkdir()
    with Journal(command.folder / "out" / "journal.jsonl"):
        code, _, output = await command.run()
    assert code == 1
    assert "journal.jsonl: another run is writing here" in output
    assert command.server.bodies == []
