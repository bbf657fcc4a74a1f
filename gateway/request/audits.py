"""`Audits`: runs the audits of recipes' answers after they were delivered.

It is an observer of finished requests and comes before the others, so that the record says what became of an audit. An
audit never delays a request, and its calls are charged to no key. Every draw ends as an event of the feedback log and
in the metrics: its outcome, or why it was skipped.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from time import perf_counter
from types import TracebackType
from typing import Self

from coe.records import Pending
from coe.records.feedback import AuditDetail, AuditOutcome, Feedback
from coe.records.record import RecipeCall
from coe.usage import RecipeAudit, RecipeLog
from gateway.observability.metrics import Metrics
from gateway.request.trace import Trace
from gateway.serving_state import ServingState

MAX_AUDITS = 4
"""Audits that run at a time in one process; further ones are skipped."""
TIMEOUT_SECONDS = 60.0
_log = logging.getLogger("gateway")


class Audits:
    """Runs audits of recipes' answers in the background.

    `store` receives the outcomes. Leaving the context cancels the audits that still run.
    """

    def __init__(
        self,
        state: ServingState,
        *,
        store: Callable[[Pending], None],
        metrics: Metrics,
        timeout: float = TIMEOUT_SECONDS,
    ) -> None:
        self._state = state
        self._store = store
        self._metrics = metrics
        self._timeout = timeout
        self._running: set[asyncio.Task[None]] = set()
        metrics.gauge("coe_audits_in_flight", "Audits in progress.", lambda: len(self._running))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    def observe(self, trace: Trace) -> None:
        """Start or skip the audit of a finished request, if its answer was drawn for one."""
        log = trace.attempts.recipe_log
        if log is None or not log.audited:
            return
        audit, log.audit = log.audit, None
        if trace.options is not None and trace.options.purpose:  # CoE's own requests are not traffic
            return
        outcome = self._without_calls(trace, log, audit)
        trace.audit = outcome or "started"
        if outcome or audit is None:
            self._finish(trace, log, outcome or "failed")
            return
        task = asyncio.create_task(self._run(trace, log, audit), name="coe-audit")
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    def _without_calls(self, trace: Trace, log: RecipeLog, audit: RecipeAudit | None) -> AuditOutcome | None:
        """Return the outcome of an audit that makes no calls; None if it can run."""
        if trace.outcome != "ok":
            return "skipped_not_delivered"
        if log.stop == "last_step":
            return "last_step"
        if audit is None:
            return "skipped_large_body"
        if not audit.readable:
            return "skipped_unreadable"
        if self._state.leaving or self._state.admission.closed:
            return "skipped_draining"
        if len(self._running) >= MAX_AUDITS:
            return "skipped_busy"
        return None if audit.available else "skipped_unavailable"

    async def _run(self, trace: Trace, log: RecipeLog, audit: RecipeAudit) -> None:
        outcome: AuditOutcome = "cancelled"
        start = perf_counter()
        try:
            async with asyncio.timeout(self._timeout):
                outcome = await audit.run()
        except TimeoutError:
            outcome = "failed"
        except Exception:  # a defect; the answer was delivered
            outcome = "failed"
            _log.exception("an audit failed", extra={"request_id": trace.request_id})
        finally:
            self._finish(trace, log, outcome, audit, ms=(perf_counter() - start) * 1000)

    def _finish(
        self, trace: Trace, log: RecipeLog, outcome: AuditOutcome, audit: RecipeAudit | None = None, *, ms: float = 0.0
    ) -> None:
        """Count and store the outcome."""
        calls = audit.calls if audit else []
        costs = [trace.cost_of(call) for call in calls]
        for call, cost in zip(calls, costs, strict=True):
            self._metrics.record_audit_call(call.expert, call.usage, cost)
        self._metrics.record_audit(log.recipe, outcome)
        known = [cost for cost in costs if cost is not None]
        detail = AuditDetail(
            log.recipe,
            trace.decision.expert if trace.decision else "",
            trace.serving.policies.version,
            log.audit_rate,
            round(ms, 3),
            sum(known) if known else None,
            tuple(map(RecipeCall.of, calls)),
        )
        event = Feedback(
            f"audit:{trace.request_id}",
            trace.request_id,
            time.time(),
            "audit",
            outcome,
            tenant=trace.caller.tenant,
            audit=detail,
        )
        self._store(Pending(event))
