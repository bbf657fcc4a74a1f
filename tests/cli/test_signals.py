"""A job that gets SIGTERM leaves no drafts and no temporary folders."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import time
import routers
from coe.cli import main

def announce():
    print("begun", flush=True)
    time.sleep(120)

def build(*_, out, **__):
    out.mkdir(parents=True, exist_ok=True)
    (out / "half").touch()
    announce()
    time.sleep(120)

routers.build = routers.export_encoder = build
main()
"""
DECLARED = """\
version: 1
categories:
  - {name: code, description: programs, examples: [write a loop, sort a list]}
  - {name: general, description: the rest, examples: [hello there, good morning]}
experts: [{name: one, model: m, runtime: external, base_url: 'http://127.0.0.1:9/v1'}]
assignment: {general: one}
router: {training_data: prompts.jsonl}
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with the data of both jobs: labelled prompts, some of them scored."""
    pairs = [(f"prompt {number}", ("code", "general")[number % 2]) for number in range(40)]
    prompts = [{"benchmark": "b", "prompt_id": text, "prompt": text, "category": name} for text, name in pairs]
    scores = [{"benchmark": "b", "prompt_id": text, "model": model, "score": 1} for text, _ in pairs for model in "mn"]
    (tmp_path / "experts.yaml").write_text(DECLARED)
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, prompts)))
    (tmp_path / "scores.jsonl").write_text("\n".join(map(json.dumps, scores)))
    (tmp_path / "temporary").mkdir()
    return tmp_path


@pytest.mark.parametrize("verb", ["train", "benchmark"])
def test_sigterm_ends_a_job_and_leaves_no_partial_files(verb: str, place: Path) -> None:
    words = [verb, "--config", "experts.yaml"] if verb == "train" else [verb, "."]
    program = (sys.executable, "-c", PROGRAM, *words)
    environ = os.environ | {"TMPDIR": str(place / "temporary")}
    with subprocess.Popen(program, cwd=place, env=environ, stdout=subprocess.PIPE, text=True) as job:
        assert job.stdout is not None
        assert job.stdout.readline() == "begun\n"
        assert list(place.rglob("half"))
        job.send_signal(signal.SIGTERM)
        assert job.wait(240) == 128 + signal.SIGTERM
    assert not list(place.rglob("half"))
    assert not list((place / "temporary").iterdir())
