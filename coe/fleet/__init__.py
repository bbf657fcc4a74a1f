"""The local expert servers: planned from the declared experts, started, health-checked, restarted and stopped."""

from coe.fleet.fleet import Fleet
from coe.fleet.planning import local_servers
from coe.fleet.ports import free_port
from coe.fleet.process import end_orphans
from coe.fleet.specs import LocalExpert, ServerSpec
from coe.fleet.timeouts import Backoff, Timeouts
from coe.fleet.validation import find_problems
from coe.fleet.vllm.adapters import AdapterSync
from coe.fleet.vllm.client import VllmClient

__all__ = [
    "AdapterSync",
    "Backoff",
    "Fleet",
    "LocalExpert",
    "ServerSpec",
    "Timeouts",
    "VllmClient",
    "end_orphans",
    "find_problems",
    "free_port",
    "local_servers",
]
