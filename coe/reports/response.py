"""Acts on the alarms of a report: demotes experts that got worse, notifies the webhook, and stores them for gateways.

`coe report --publish` and `coe retrain` call `publish` under the lock of learning jobs. The webhook gets every alarm
once; one that it does not accept is sent again with the next report.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from http.client import HTTPException
from typing import Any
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener
from uuid import uuid4

import orjson

from coe.artifacts.artifact_sync import synced_store
from coe.artifacts.manifest import ASSIGNMENT
from coe.artifacts.redis import TRAFFIC_REPORT_FILE, publish_traffic_report, read_traffic_report
from coe.errors import ConfigError
from coe.learning.refit import demoted_cells, with_demoted
from coe.learning.round import job_lock
from coe.planning.plan import Demoted, Drop, Plan
from coe.planning.solver import marginal_values, solve
from coe.registry import Registry, load
from coe.registry.sections import AlarmsSpec
from coe.settings import Settings
from coe.terminal import print_error

ATTEMPTS, PAUSE_SECONDS, TIMEOUT_SECONDS = 3, 1.0, 5.0
"""Requests to the webhook for one report, the pause after the first, which doubles, and the time limit of each."""
WAIT_SECONDS = 300.0
"""Time that a report waits for another job, such as `coe retrain`, to end."""
MAX_ALARMS = 50
"""Alarms of one request to the webhook."""


def publish(settings: Settings, found: Mapping[str, Any]) -> dict[str, Any]:
    """Act on the alarms of a report; returns it with what was done. Waits while another job runs; raises JobError
    if that takes too long."""
    registry = load(settings.config, environ=settings.environ)
    with job_lock(registry.log.url, home=settings.home, wait=WAIT_SECONDS) as check_lock:
        before = read_traffic_report(settings.artifacts / TRAFFIC_REPORT_FILE)
        alarms = found["alarms"]
        if registry.alarms.demote:
            check_lock()
            alarms = demoted(settings, registry, alarms)
        topics = [_topics(alarm) for alarm in alarms]
        notified = set().union(*topics).intersection(() if before is None else before.notified)
        new = [index for index, names in enumerate(topics) if not names <= notified][:MAX_ALARMS]
        if new and registry.alarms.webhook and send(registry.alarms, [alarms[index] for index in new]):
            notified = notified.union(*(topics[index] for index in new))
        acted = {**found, "alarms": alarms}
        publish_traffic_report(settings, acted, sorted(notified))
    return acted


def _topics(alarm: Mapping[str, Any]) -> set[str]:
    """Return what an alarm is about: its expert, and each category that it names."""
    categories = [drop["category"] for drop in alarm.get("drops", ())] or [""]
    return {f"{alarm['kind']} {alarm['expert']} {category}".strip() for category in categories}


def demoted(settings: Settings, registry: Registry, alarms: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Promote the plan in which the quality of each category that an expert got worse in is its mean rating, which
    lasts until the expert is measured again.

    Returns the alarms, whose sentences name the new experts. A version that a person promoted or rolled back to stays.
    """
    store = synced_store(settings, ASSIGNMENT)
    version, move = store.in_use(), store.last_move()
    cells = [(alarm["expert"], Drop(**drop)) for alarm in alarms for drop in alarm.get("drops", ())]
    if version is None or not cells or (move is not None and move.by in ("hand", "rollback")):
        return list(alarms)
    plan = Plan.read(store.published(version).folder)
    before = dict(zip(plan.assignment.categories, plan.assignment.choice, strict=True))
    demoted: dict[str, tuple[Drop, ...]] = {}
    for expert, drop in cells:
        if before.get(drop.category) == expert and drop.category not in registry.assignment:
            demoted[expert] = (*demoted.get(expert, ()), drop)
    if not demoted:
        return list(alarms)
    try:
        after = _solved_again(plan, demoted)
    except ConfigError as error:
        print_error(f"no expert is demoted: no plan without it keeps the budget ({error})")
        return list(alarms)
    now = dict(zip(after.assignment.categories, after.assignment.choice, strict=True))
    moved = {name: now[name] for name in now if now[name] != before[name]}
    if not moved:
        return list(alarms)
    why = ", ".join(f"{name} from {before[name]} to {expert}" for name, expert in moved.items())
    with store.draft() as draft:
        after.save(draft)
        artifact = store.publish(draft, categories=plan.assignment.categories, data=registry.digest, metrics={})
    store.promote(artifact.manifest.version, by="alarm", why=f"demoted: {why}")
    note = f". Until then demoted: {why}; `coe rollback assignment` undoes it"
    return [{**alarm, "sentence": alarm["sentence"] + note} if alarm.get("drops") else alarm for alarm in alarms]


def _solved_again(plan: Plan, demoted: Demoted) -> Plan:
    """Return the plan with the ratings of experts that are `demoted` now in place of their scores."""
    problem, quality, estimate = plan.problem, plan.problem.quality.copy(), plan.estimate.copy()
    for cell, drop in demoted_cells(demoted, problem.categories, problem.experts):
        quality[cell] = estimate[cell] = drop.found
    problem = replace(problem, quality=quality)
    assignment = solve(problem, traffic=plan.traffic, residual=plan.assignment.residual)
    return replace(
        plan,
        assignment=assignment,
        problem=problem,
        table=with_demoted(plan.table, demoted),
        estimate=estimate,
        measured=None if plan.measured is None else with_demoted(plan.measured, demoted),
        demoted={name: (*plan.demoted.get(name, ()), *demoted.get(name, ())) for name in {**plan.demoted, **demoted}},
        value_of_expert=marginal_values(problem, assignment),
    )


class _NoRedirect(HTTPRedirectHandler):
    """Makes a redirect an error: another address would get the alarms unasked."""

    def redirect_request(self, *_: Any) -> None:
        return None


def send(spec: AlarmsSpec, alarms: Sequence[Mapping[str, Any]]) -> bool:
    """Post alarms to the webhook; returns whether it accepted them."""
    url, secret = spec.webhook or "", spec.secret.get_secret_value() if spec.secret else ""
    body: dict[str, Any] = {"text": "\n".join(f"CoE: {alarm['sentence']}" for alarm in alarms)}
    if urlsplit(url).hostname != "hooks.slack.com":
        body |= {"type": "coe.alarms", "alarms": alarms}
    content, identifier, problem = orjson.dumps(body), f"msg_{uuid4().hex}", ""
    for attempt in range(ATTEMPTS):
        moment = str(int(time.time()))
        headers = {"content-type": "application/json", "webhook-id": identifier, "webhook-timestamp": moment}
        if secret:
            headers["webhook-signature"] = signature(secret, identifier, moment, content)
        try:
            request = Request(url, content, headers)  # noqa: S310  the registry accepts http and https alone
            with build_opener(_NoRedirect).open(request, timeout=TIMEOUT_SECONDS):
                return True
        except (OSError, HTTPException) as error:  # an HTTP status of 300 and above is an OSError
            problem = str(error)
        if attempt < ATTEMPTS - 1:
            time.sleep(PAUSE_SECONDS * 2**attempt)
    print_error(f"the webhook did not accept the alarms: {problem}; the next report sends them")
    return False


def signature(secret: str, identifier: str, moment: str, content: bytes) -> str:
    """The header of the Standard Webhooks: HMAC-SHA256 of `ID.TIMESTAMP.BODY`. A secret `whsec_...` is base64."""
    prefix = "whsec_"
    key = base64.b64decode(secret.removeprefix(prefix)) if secret.startswith(prefix) else secret.encode()
    signed = f"{identifier}.{moment}.".encode() + content
    return "v1," + base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
