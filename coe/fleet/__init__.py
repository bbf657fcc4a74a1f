"""Local expert servers: planned from the declared experts, started together, watched, restarted, and stopped whole."""

from coe.fleet.fleet import Fleet
from coe.fleet.pace import Backoff, Pace
from coe.fleet.ports import free_port
from coe.fleet.specs import LocalExpert, ServerSpec, local_servers

__all__ = ["Backoff", "Fleet", "LocalExpert", "Pace", "ServerSpec", "free_port", "local_servers"]
