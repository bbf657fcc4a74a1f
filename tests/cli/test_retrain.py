"""`coe retrain`, `promote` and `rollback`: from a log in Redis to the plan in use and back."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from coe.artifacts.active_state import load_active_state
from coe.cli import app, retrain
from coe.errors import ArtifactError, DataError, JobError, StoreError
from coe.learning.round import job_lock
from tests.cli.logged_service import LoggedService

RETRAINED_CHOICES = {"cooking": "chef", "astronomy": "generalist", "football": "chef", "general": "generalist"}


def test_ratings_change_the_plan_in_use_and_the_change_can_be_rolled_back(service: LoggedService) -> None:
    assert set(service.choices().values()) == {"generalist"}
    service.serve(500)
    found = service.retrain()
    assert found["promoted"], found["sentence"]
    assert service.choices() == RETRAINED_CHOICES
    assert service.store().in_use() == found["version"]
    folder = Path(found["folder"])
    assert {path.name for path in folder.iterdir()} == {"manifest.json", "plan.json", "report.json"}
    report = json.loads((folder / "report.json").read_text())
    assert {row["category"] for row in report["changes"]} == {"cooking", "football"}
    assert set(report["estimates"]) == {"current", "candidate"}
    assert json.loads((folder / "plan.json").read_text())["source"] == "the feedback on 500 requests"
    assert report["promoted"]
    latest = service.store().last_move()
    assert latest is not None
    assert (latest.by, latest.why) == ("retrain", found["sentence"])

    assert "nothing to learn from: no feedback is new" in service.run("retrain")
    assert service.report("rollback", "assignment") == {"kind": "assignment", "was": found["version"], "in_use": None}
    assert set(service.choices().values()) == {"generalist"}
    with pytest.raises(ArtifactError, match="no assignment was in use before this; name one to `coe promote`"):
        service.run("rollback", "assignment")
    service.run("promote", "assignment", "--why", "it was right")
    assert service.choices() == RETRAINED_CHOICES


def test_ratings_in_a_sqlite_log_change_the_plan_and_where_it_explores(
    service: LoggedService,
) -> None:
    service.url = f"sqlite:///{service.config.with_name('log.db')}"
    service.declare()
    service.serve(500)
    assert "promoted: " in service.run("retrain")
    assert service.choices() == RETRAINED_CHOICES
    assert load_active_state(service.settings).assignment.exploration is not None


def test_another_machine_continues_from_the_learned_plan(service: LoggedService, tmp_path: Path) -> None:
    service.declare(artifacts=service.url)
    service.run("promote", "router")
    service.serve(500)
    found = service.retrain()
    assert found["promoted"], found["sentence"]

    other = LoggedService(tmp_path / "other" / "experts.yaml", service.url)
    other.config.parent.mkdir()
    other.declare(artifacts=service.url)
    assert "nothing to learn from: no feedback is new" in other.run("retrain")
    assert other.choices() == RETRAINED_CHOICES
    assert other.report("rollback", "assignment") == {"kind": "assignment", "was": found["version"], "in_use": None}
    assert service.report("promote", "assignment", found["version"])["was"] is None
    assert other.report("status")["in_use"]["assignment"]["version"] == found["version"]


def test_a_dry_run_judges_and_changes_nothing(service: LoggedService) -> None:
    service.serve(400)
    before = sorted(service.settings.home.rglob("*"))
    found = service.retrain("--dry-run")
    assert found["sentence"].startswith("dry run, nothing is changed; promoted: ")
    assert found["report"]["promoted"]
    assert [path for path in sorted(service.settings.home.rglob("*")) if path.name != "retrain.lock"] == before
    assert service.retrain()["promoted"]


def test_measured_quality_alone_makes_a_round_and_the_same_again_makes_none(service: LoggedService) -> None:
    service.serve(30)
    folder = service.config.with_name("quality")
    folder.mkdir()
    from tests.routers.conftest import examples

    prompts, scores = [], []
    for number, example in enumerate(examples(count=60)):
        one = {"benchmark": "own", "prompt_id": str(number)}
        prompts.append({**one, "prompt": example.prompt, "category": example.category, "label": ""})
        right = "generalist" if example.category == "astronomy" else "chef"
        scores += [{**one, "model": name, "score": float(name == right)} for name in ("chef", "generalist")]
    prompts.append({**prompts[0], "benchmark": "other"})
    (folder / "prompts.jsonl").write_text("\n".join(map(json.dumps, prompts)))
    (folder / "scores.jsonl").write_text("\n".join(map(json.dumps, scores)))
    with pytest.raises(DataError, match="no benchmark was named; choose one of other, own"):
        service.retrain("--probes", folder)
    found = service.retrain("--probes", folder, "--benchmark", "own")
    assert found["promoted"], found["sentence"]
    assert [one["source"] for one in found["report"]["evidence"]] == ["held-out set"]
    assert service.choices() == RETRAINED_CHOICES
    assert "no feedback is new" in service.retrain("--probes", folder, "--benchmark", "own")["sentence"]


def test_a_log_without_requests_or_feedback_changes_nothing_and_is_no_failure(service: LoggedService) -> None:
    assert service.retrain()["sentence"] == "nothing to learn from: no feedback is new"
    service.serve(20, outcome="expert_unavailable")
    assert "the routing log holds nothing to learn from ({'failed': 20})" in service.retrain()["sentence"]


def test_while_another_job_runs_a_round_is_refused_with_its_name(service: LoggedService) -> None:
    service.serve(400)
    with job_lock(service.url, home=service.settings.home), pytest.raises(JobError, match=r"job is running \(process"):
        service.run("retrain")
    assert service.retrain()["promoted"]


def test_rounds_repeat_until_sigterm_and_survive_an_error(
    service: LoggedService, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[float] = []

    def run(*_: object, **__: object) -> list[object]:
        calls.append(time.time())
        if len(calls) == 1:
            raise StoreError("the log cannot be reached")
        os.kill(os.getpid(), signal.SIGTERM)
        return []

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    monkeypatch.setattr(retrain, "run_rounds", run)
    try:
        result = CliRunner().invoke(app, ["retrain", "--dry-run", "--every", "1s", "--config", str(service.config)])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert (result.exit_code, len(calls)) == (0, 2)
    assert "the log cannot be reached; next try in about 1s" in result.stderr


@pytest.mark.parametrize(
    "words",
    [("retrain", "--since", "soon"), ("retrain", "--every", "0h"), ("retrain", "--benchmark", "own"), ("promote", "a")],
)
def test_bad_usage_exits_with_2(words: tuple[str, ...], service: LoggedService) -> None:
    assert CliRunner().invoke(app, [*words, "--config", str(service.config)]).exit_code == 2
