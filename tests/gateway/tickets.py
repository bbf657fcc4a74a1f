"""Requests as the admission knows them: tickets whose body is there, and what became of them."""

from __future__ import annotations

from coe.registry import Limits
from gateway.request.admission import Admission, Ticket


def admission_of(permits: int = 1, *, queued: int = 100, timeout: float = 60.0) -> Admission:
    return Admission(Limits(concurrent_requests=permits, queued_requests=queued, queue_timeout=timeout))


def asked(admission: Admission, caller: str | None) -> Ticket:
    """A request whose body came with it."""
    ticket = admission.ticket(caller)
    ticket.arrived()
    return ticket


def leave(ticket: Ticket) -> None:
    ticket.__exit__(None, None, None)


def holds(ticket: Ticket) -> bool:
    return not ticket.arriving and (ticket.turn is None or (ticket.turn.done() and ticket.turn.result()))


def lost(ticket: Ticket) -> bool:
    """Its place in the queue went to another caller."""
    return ticket.turn is not None and ticket.turn.done() and not ticket.turn.result()
