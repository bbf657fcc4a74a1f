"""Runs the rounds of `coe retrain`: the plan first, then the router, the overlays and the gate."""

from __future__ import annotations

import time
from pathlib import Path
from tempfile import TemporaryDirectory

from coe.jobs.engine import Engine, task_runner
from coe.jobs.gate_round import GateRound
from coe.jobs.overlay_round import OverlayRound
from coe.jobs.plan_round import PlanRound
from coe.jobs.round import Outcome, Round, open_job, run_round
from coe.jobs.router_round import RouterRound
from coe.settings import Settings


def retrain(
    settings: Settings,
    *,
    probes: Path | None,
    benchmark: str | None = None,
    window: float,
    dry_run: bool,
    engine: Engine = Engine.LOCAL,
) -> list[Outcome]:
    """Run a round of each kind on the requests of the last `window` seconds.

    A new router ends the run: overlays and gate belong to the router that they were fitted to. Raises JobError where
    another job holds the lock, or the error of a damaged state.
    """
    now = time.time()
    with (
        open_job(settings, since=now - window, now=now, dry_run=dry_run) as job,
        task_runner(engine) as runner,
        TemporaryDirectory(prefix="coe-vectors-") as cache,
    ):
        plan = PlanRound(probes, benchmark)
        outcomes = [run_round(plan, job)]
        if plan.experience is not None:
            router = run_round(RouterRound(plan.experience, runner, Path(cache)), job)
            outcomes.append(router)
            if router is None or not router.promoted:
                rest: tuple[Round, ...] = (OverlayRound(plan.experience), GateRound())
                outcomes += [run_round(one, job) for one in rest]
        return [outcome for outcome in outcomes if outcome is not None]
