"""Fake servers that share a device, and a check that no process is left."""

from tests.fleet.conftest import fakes

__all__ = ["fakes"]
