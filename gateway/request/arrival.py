"""From a request's headers to its body and its permit, with the clock running since it arrived."""

from __future__ import annotations

import asyncio
from functools import partial

from starlette.types import Receive, Scope

from coe.core import Chat, RequestOptions
from coe.errors import DeadlineExceeded
from coe.registry import Limits
from gateway.dialects import Dialect
from gateway.request.admission import Admission, Ticket
from gateway.request.body import BODY_TIMEOUT, SMALL_BODY, read_json_body, too_slow
from gateway.request.cancellation import Cancellation

PARSE_REST = 0.02
"""Seconds before a large body is parsed, in which other requests are served."""


def begin(admission: Admission, options: RequestOptions) -> Cancellation:
    """What may end the request; at first only the time its body has to arrive in."""
    now = asyncio.get_running_loop().time()
    if options.timeout <= BODY_TIMEOUT:
        return Cancellation(admission.under_way, deadline=now + options.timeout, late=partial(_late, options.timeout))
    return Cancellation(admission.under_way, deadline=now + BODY_TIMEOUT, late=too_slow)


async def admit(
    scope: Scope, receive: Receive, *, ticket: Ticket, cutoff: Cancellation, options: RequestOptions, limits: Limits
) -> bytes | bytearray:
    """The body, once the permit is there. It is read first: a body that does not come must hold no permit, and a client
    can be seen to leave only after it. Raises what `read_json_body` does, or Overloaded."""
    began = cutoff.deadline - min(options.timeout, BODY_TIMEOUT)
    largest, values = int(limits.max_body_mb * 2**20), limits.max_json_values
    body = await read_json_body(scope, receive, limit=largest, max_values=values, room=ticket)
    ticket.arrived()
    cutoff.deadline, cutoff.late = began + options.timeout, partial(_late, options.timeout)
    cutoff.watch(receive)
    if ticket.turn is not None:
        await ticket.permit()
    return body


async def parsed(dialect: Dialect, body: bytes | bytearray, admission: Admission) -> Chat:
    """The routing view of a body. Large ones are parsed one at a time with a rest between two, since parsing one holds
    up the event loop, as writing the one before for its expert does. Raises InvalidRequest."""
    if len(body) <= SMALL_BODY:
        return dialect.parse(body)
    async with admission.parsing:
        await asyncio.sleep(PARSE_REST)
        chat = dialect.parse(body)
        await asyncio.sleep(0)
    return chat


def _late(timeout: float) -> DeadlineExceeded:
    return DeadlineExceeded(f"the answer was not complete within the {timeout:g} s this request had")
