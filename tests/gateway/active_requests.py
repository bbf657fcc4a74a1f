"""Requests in admission, without HTTP: opened, arrived, with a permit or waiting."""

from __future__ import annotations

from coe.registry import Limits
from gateway.request.admission import ActiveRequest, Admission


def admission_of(permits: int = 1, *, queued: int = 100, timeout: float = 60.0) -> Admission:
    return Admission(Limits(concurrent_requests=permits, queued_requests=queued, queue_timeout=timeout))


def opened(admission: Admission, caller: str | None) -> ActiveRequest:
    """A request whose body still arrives."""
    return admission.open(caller, timeout=60.0).__enter__()


def arrived(admission: Admission, caller: str | None) -> ActiveRequest:
    """A request whose body came with it."""
    request = opened(admission, caller)
    admission.body_arrived(request)
    return request


def leave(request: ActiveRequest) -> None:
    request.__exit__(None, None, None)


def has_permit(request: ActiveRequest) -> bool:
    return not request.arriving and (request.granted is None or request.granted.done())
