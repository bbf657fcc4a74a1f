"""`coe init` as a user runs it: against servers on real sockets, then `coe check`, then the loader."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import anyio.from_thread
import pytest
from typer.testing import CliRunner

from coe.cli import app
from coe.cli import init as init_verb
from coe.cli.init import endpoint
from coe.errors import CoEError
from coe.registry import Registry, load
from tests.experts.fault_servers import Answer, closed_port, servers
from tests.init import model_lists
from tests.init.model_lists import listing

KEY = "sk-very-secret-4711"
FAST, STRONG = listing(model_lists.VLLM), listing([{"id": "gpt-5-mini", "created": 1.7e9}], key=KEY)


@contextmanager
def running(*answers: Answer) -> Iterator[list[str]]:
    """The roots of servers that run beside a command."""
    with (
        anyio.from_thread.start_blocking_portal() as portal,
        portal.wrap_async_context_manager(servers(answers)) as roots,
    ):
        yield roots


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, and an environment without keys and without servers of this machine."""
    monkeypatch.chdir(tmp_path)
    for name in [*os.environ]:
        if name.endswith(("_API_KEY", "_BASE_URL", "_API_BASE")) or name.startswith("COE_"):
            monkeypatch.delenv(name)
    monkeypatch.setattr(init_verb, "LOCAL_SERVERS", ())
    return tmp_path


def run(*words: str) -> tuple[int, str]:
    """The exit status and the output; an error is printed as `coe` prints it."""
    result = CliRunner().invoke(app, ["init", *words])
    if isinstance(result.exception, CoEError):
        return 1, f"{result.output}{result.exception}"
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def loaded(path: Path, **environ: str) -> Registry:
    return load(path, environ=environ)


def test_a_server_becomes_a_declaration_that_checks_and_loads(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    with running(STRONG) as (strong,):
        status, output = run("--endpoint", strong, "--key-env", "MY_KEY")
        checked = CliRunner().invoke(app, ["check", "--live"])
    assert (status, checked.exit_code) == (0, 0), output + checked.output
    assert output.count(" answers at ") == checked.output.count(" answers at ") == 1
    assert "good (14 categories, 1 experts" in checked.output
    (mini,) = loaded(folder / "experts.yaml", MY_KEY=KEY).experts
    assert (mini.name, mini.base_url) == ("gpt-5-mini", f"{strong}/v1")
    assert mini.prices.output == 0  # a server of the user's own
    assert mini.api_key is not None
    text = (folder / "experts.yaml").read_text()
    assert "api_key: ${MY_KEY}" in text
    assert KEY not in text + output
    assert "coe up\n" in output


def test_an_existing_file_is_kept_without_force(folder: Path) -> None:
    file = folder / "own.yaml"
    file.write_text("mine")
    with running(FAST) as (root,):
        status, output = run("--endpoint", root, "--output", "own.yaml")
        assert (status, "--force" in output, file.read_text()) == (1, True, "mine")
        status, output = run("--endpoint", root, "--output", "own.yaml", "--force")
    assert (status, loaded(file).expert_names) == (0, ("Qwen2.5-Coder-7B-Instruct",))
    assert "coe up --config own.yaml" in output
    assert [path.name for path in folder.iterdir()] == ["own.yaml"]


def test_what_runs_here_and_the_keys_that_are_set_are_found(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with running(listing(model_lists.OLLAMA), STRONG) as (ollama, hosted):
        monkeypatch.setenv("OPENAI_BASE_URL", f"{hosted}/v1")
        local = [replace(endpoint(ollama), kind="local", name="ollama")]
        local.append(replace(endpoint(closed_port()), kind="local", name="vllm"))
        monkeypatch.setattr(init_verb, "LOCAL_SERVERS", tuple(local))
        status, output = run()
    assert status == 0, output
    assert "openai (OPENAI_API_KEY) at" in output
    assert "vllm" not in output
    assert set(loaded(folder / "experts.yaml", OPENAI_API_KEY=KEY).expert_names) == {"gpt-5-mini", "llama3.2-3b"}


def test_a_source_that_fails_is_reported_and_the_others_are_written(folder: Path) -> None:
    with running(FAST) as (root,):
        status, output = run("--endpoint", root, "--endpoint", closed_port(), "--offline")
    assert (status, "connection_refused" in output) == (1, True)
    assert loaded(folder / "experts.yaml").expert_names == ("Qwen2.5-Coder-7B-Instruct",)
    assert "answers at" not in output


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ((), "`coe init --demo` needs none of these"),
        (("--endpoint", "http://127.0.0.1:9"), "connection_refused"),
        (("--endpoint", "ftp://h"), "write http://HOST"),
        (("--endpoint", "http://h", "--key-env", KEY), "not the key itself"),
        (("--endpoint", "http://h", "--endpoint", "http://i", "--key-env", "HOME"), "and one --endpoint"),
        (("--demo", "--endpoint", "http://h"), "cannot be combined with"),
    ],
)
def test_bad_input_writes_nothing_and_names_the_remedy(folder: Path, words: Sequence[str], why: str) -> None:
    status, output = run(*words)
    assert status in (1, 2)
    assert why in " ".join(output.split())
    assert KEY not in output
    assert not [*folder.iterdir()]


def test_a_text_that_the_loader_refuses_leaves_the_old_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = folder / "experts.yaml"
    file.write_text("mine")
    monkeypatch.setattr(init_verb, "declaration", lambda *_, **__: "version: 2")
    with running(FAST) as (root,):
        assert run("--endpoint", root, "--force")[0] == 1
    assert ([*folder.iterdir()], file.read_text()) == ([file], "mine")


def test_patterns_select_models_and_a_pattern_without_any_is_an_error(folder: Path) -> None:
    many = [{"id": f"lab/model-{number}"} for number in range(300)]
    with running(listing(many)) as (root,):
        assert "no model matches nothing*" in run("--endpoint", root, "--model", "nothing*")[1]
        assert "300 models are selected" in run("--endpoint", root, "--model", "*")[1]
        assert run("--endpoint", root, "--model", "*-29?", "--offline")[0] == 0
    assert len(loaded(folder / "experts.yaml").experts) == 10


def test_the_demo_needs_no_server(folder: Path) -> None:
    status, output = run("--demo")
    assert status == 0, output
    assert loaded(folder / "experts.yaml").expert_names == ("coder", "analyst", "writer", "generalist")
