"""Connects to a Ray cluster: the one at RAY_ADDRESS, or a temporary one on this machine."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from coe.errors import ClusterError

CONNECT_TIMEOUT = 5.0
"""Seconds for the head node to accept a connection; Ray itself tries for more than two minutes."""


@contextmanager
def ray_cluster() -> Iterator[Any]:
    """Yields the module `ray`, connected until the block ends; a temporary cluster ends with it. Raises ClusterError if
    Ray is not installed or the cluster cannot be reached."""
    try:
        import ray
    except ImportError:
        raise ClusterError("ray is not installed; pip install 'coe[ray]', or leave out --engine ray") from None
    _check_reachable(os.environ.get("RAY_ADDRESS", ""))
    try:
        ray.init(log_to_driver=False, logging_level="error")
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ClusterError(f"ray: no cluster ({error}); check RAY_ADDRESS, or unset it to use this machine") from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _check_reachable(address: str) -> None:
    """Ray resolves addresses without a port (`auto`, `local`) itself, at once."""
    host, _, port = address.partition("://")[2 if "://" in address else 0].rpartition(":")
    if not host or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_TIMEOUT).close()
    except (OSError, OverflowError) as error:
        raise ClusterError(
            f"ray: nothing answers at RAY_ADDRESS={address} ({error}); is the head of the cluster running? "
            "Unset it to use this machine"
        ) from None
