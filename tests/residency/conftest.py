"""Fake servers that take turns, and a check that none is left."""

from tests.fleet.conftest import fakes

__all__ = ["fakes"]
