"""Local expert servers: planned from the declared experts, started together, watched, restarted, and stopped whole."""

from coe.fleet.fleet import Fleet
from coe.fleet.planning import local_servers
from coe.fleet.ports import free_port
from coe.fleet.process import end_leftovers
from coe.fleet.specs import LocalExpert, ServerSpec
from coe.fleet.timeouts import Backoff, Timeouts
from coe.fleet.validation import mistakes
from coe.fleet.vllm.adapters import AdapterSync
from coe.fleet.vllm.client import Vllm

__all__ = [
    "AdapterSync",
    "Backoff",
    "Fleet",
    "LocalExpert",
    "ServerSpec",
    "Timeouts",
    "Vllm",
    "end_leftovers",
    "free_port",
    "local_servers",
    "mistakes",
]
