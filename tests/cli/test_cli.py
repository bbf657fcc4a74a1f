"""The `coe` command as a user meets it."""

import asyncio
import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from coe.cli import app, main
from coe.records import open_log_and_feedback
from coe.records.record import RoutingRecord
from tests.cli.command import run
from tests.cli.conftest import DECLARED


def record_of(number: int, **fields: object) -> RoutingRecord:
    usual: dict[str, object] = {
        "request_id": f"req_{number}",
        "time": time.time() - 100 + number,
        "category": "code",
        "confidence": 0.9,
        "expert": "small",
        "reason": "routed",
        "propensity": 1.0,
        "candidates": ("small",),
        "probabilities": {"code": 0.9, "general": 0.1},
        "stage": "fast",
        "router": "r",
        "config": "c",
        "digest": "d",
        "outcome": "ok",
        "attempts": 1,
        "stream": False,
        "routing_ms": 0.1,
        "first_token_ms": 5.0,
        "total_ms": 6.0,
    }
    return RoutingRecord(**(usual | fields))  # type: ignore[arg-type]


def logged(config: Path, *records: RoutingRecord) -> None:
    async def append() -> None:
        log = open_log_and_feedback("sqlite:///routing-log.sqlite", base=config.parent / ".coe")[0]
        await log.append(records)
        await log.aclose()

    asyncio.run(append())


def test_check_prints_every_problem_and_fails(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config.write_text(DECLARED.replace("general: small", "general: smal").replace("version: 1", "version: 1\nx: 1"))
    result = CliRunner().invoke(app, ["check", "--config", str(config), "--json"])
    assert result.exit_code == 1
    assert "unknown key 'x'" in json.loads(result.stdout)["problems"][0]
    monkeypatch.setattr("sys.argv", ["coe", "check", "--config", str(config)])
    with pytest.raises(SystemExit) as exit_:
        main()
    assert exit_.value.code == 1
    assert "experts.yaml:2: unknown key 'x'" in capsys.readouterr().err


def test_a_missing_package_is_named_with_its_extra_and_one_of_the_core_is_a_defect(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["coe", "check", "--config", str(config)])
    extras = {"sklearn.svm": "train", "scipy.stats": "plan", "starlette": None}
    for module, extra in extras.items():
        error = ModuleNotFoundError(f"No module named {module!r}", name=module)
        monkeypatch.setattr("coe.cli.check.registry.load", raising(error))
        with pytest.raises(SystemExit if extra else ModuleNotFoundError):
            main()
        assert extra is None or f"run `pip install 'composition-of-experts[{extra}]'`" in capsys.readouterr().err


def raising(error: Exception) -> Callable[..., None]:
    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


def test_log_lists_filters_and_prints_json(config: Path) -> None:
    logged(config, record_of(1), record_of(2, category="general", outcome="expert_timeout"), record_of(3))
    lines = run("log", "--config", config).splitlines()
    assert [line.split()[-1] for line in lines[1:]] == ["req_1", "req_2", "req_3"]
    assert "req_3" in run("log", "--config", config, "-n", 1)
    only = run("log", "--config", config, "--outcome", "expert_timeout", "--json")
    assert json.loads(only)["request_id"] == "req_2"
    assert "req" not in run("log", "--config", config, "--since", "5s")
    assert "req" not in run("log", "--config", config, "--session", "s")
    assert "req_2" in run("log", "--config", config, "--until", "5s", "--reason", "routed", "--id", "req_2")


def test_the_log_of_a_service_that_never_ran_is_reported_missing_and_not_created(config: Path) -> None:
    result = CliRunner().invoke(app, ["log", "--config", str(config)])
    assert (result.exit_code, result.stdout) == (0, "")
    assert "routing-log.sqlite: there is no routing log yet" in result.stderr
    assert not (config.parent / ".coe").exists()
