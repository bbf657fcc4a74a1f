"""Time and peak memory of one round of `coe retrain` on a large log, in a separate process.

    python benchmarks/retrain_memory.py --router DIR [--requests 1000000] [--work DIR] [--json FILE]

DIR is the folder of a trained router, such as WORK/starter of benchmarks/learning_loop.py. The log is synthetic:
requests of 50 tenants over nine experts, 30 % of them rated, in a SQLite file under --work (about 1.5 GB for a
million), which is kept there for the next run."""

from __future__ import annotations

import argparse
import asyncio
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson

import routers
from coe.artifacts.store import ArtifactStore
from coe.planning import Assignment, expected_utility
from coe.planning.problem import declared_assignment
from coe.records import open_log_and_feedback
from coe.records.feedback import Feedback
from coe.records.record import RoutingRecord
from coe.registry import load
from coe.routing.decision import choose
from coe.settings import Settings

BATCH = 5_000
TENANTS, EXPERTS = 50, 9
RATED = 0.3
RATE, LOSS = 0.1, 1.0
URL = "sqlite:///log.sqlite"


def prepare(folder: Path, router: Path, requests: int) -> Settings:
    """A service with that router and a log of so many requests."""
    settings = Settings.read({}, config=folder / "experts.yaml")
    manifest = orjson.loads((router / "router.json").read_bytes())
    experts = [
        {"name": f"expert-{n}", "model": "m", "runtime": "external", "base_url": "http://127.0.0.1:9/v1"}
        for n in range(EXPERTS)
    ]
    declared = {
        "version": 1,
        "categories": [{"name": name, "description": name} for name in manifest["categories"]],
        "experts": experts,
        "assignment": {"general": "expert-0"},
        "policy": {"exploration": {"rate": RATE, "max_quality_loss": LOSS}},
        "log": {"url": URL, "keep_records": requests},
    }
    settings.config.write_bytes(orjson.dumps(declared))
    store = ArtifactStore(settings.artifacts, "router")
    if store.in_use() is None:
        with store.draft() as draft:
            shutil.copytree(router, draft, dirs_exist_ok=True)
            made = store.publish(draft, categories=manifest["categories"], data="benchmark", metrics={})
        store.promote(made.manifest.version, by="train")
    if not (settings.home / "log.sqlite").is_file():
        asyncio.run(fill(settings, requests))
    return settings


async def fill(settings: Settings, requests: int) -> None:
    registry = load(settings.config, environ={})
    artifact = ArtifactStore(settings.artifacts, "router").current()
    assert artifact is not None
    assignment = declared_assignment(registry, routers.load(artifact.folder).categories)
    log, feedback = open_log_and_feedback(URL, base=settings.home, retention=requests)
    random, began = np.random.default_rng(0), time.time() - requests / 10
    truth = random.random((len(assignment.categories), EXPERTS))
    for first in range(0, requests, BATCH):
        made = list(batch(assignment, registry.digest, truth, random, first, began))
        await log.append([record for record, _ in made])
        await feedback.append([event for _, event in made if event is not None])
    await feedback.aclose()
    await log.aclose()


def batch(
    assignment: Assignment, config: str, truth: Any, random: np.random.Generator, first: int, began: float
) -> Iterator[tuple[RoutingRecord, Feedback | None]]:
    names = assignment.categories
    posteriors = random.dirichlet(np.full(len(names), 0.15), BATCH)
    for number, posterior in enumerate(posteriors, start=first):
        index, propensity = choose(
            expected_utility(assignment, posterior).tolist(), rate=RATE, loss=LOSS, uniform=float(random.random())
        )
        tenant, when = f"tenant-{random.integers(TENANTS)}", began + number / 10
        record = RoutingRecord(
            request_id=f"req_{number:032x}",
            time=when,
            category=names[int(posterior.argmax())],
            confidence=float(posterior.max()),
            expert=assignment.experts[index],
            reason="routed",
            propensity=propensity,
            candidates=(assignment.experts[index], *(n for n in assignment.experts if n != assignment.experts[index])),
            probabilities=dict(zip(names, posterior.round(5).tolist(), strict=True)),
            stage="predict_fast",
            router="benchmark",
            config=config,
            digest="0123456789abcdef" * 4,
            outcome="ok",
            attempts=1,
            stream=True,
            routing_ms=0.2,
            first_token_ms=80.0,
            total_ms=900.0,
            input_tokens=123,
            output_tokens=456,
            tenant=tenant,
            assignment=assignment.digest[:16],
            utility=(0.0,) * EXPERTS,
            exploration=(RATE, LOSS),
        )
        event = None
        if random.random() < RATED:
            good = float(random.random() < posterior @ truth[:, index])
            event = Feedback(f"e{number}", record.request_id, when, "score", good, tenant=tenant)
        yield record, event


def measure(settings: Settings) -> dict[str, Any]:
    """One dry run of `coe retrain`; memory in MB as the kernel counted it at its highest."""
    command = [sys.executable, "-m", "coe.cli", "retrain", "--dry-run", "--json", "--config", str(settings.config)]
    start = time.perf_counter()
    done = subprocess.run(command, check=True, capture_output=True)
    seconds = time.perf_counter() - start
    found = orjson.loads(done.stdout)["assignment"]
    return {
        "seconds": seconds,
        "peak_mb": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024,
        "requests": found["report"]["requests"],
        "feedback": found["report"]["feedback"],
        "sentence": found["sentence"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--router", type=Path, required=True)
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as fresh:
        work = given.work or Path(fresh)
        work.mkdir(parents=True, exist_ok=True)
        settings = prepare(work, given.router, given.requests)
        found = measure(settings) | {"log_mb": (settings.home / "log.sqlite").stat().st_size / 1e6}
    text = orjson.dumps(found, option=orjson.OPT_INDENT_2)
    if given.json:
        given.json.write_bytes(text)
    print(text.decode())


if __name__ == "__main__":
    main()
