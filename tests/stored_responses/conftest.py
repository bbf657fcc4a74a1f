"""Stores that reply in time on a busy machine."""

from __future__ import annotations

import pytest

from gateway.stored_responses import store


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Long timeouts of running stores."""
    monkeypatch.setattr(store, "TIMEOUT_SECONDS", 60.0)
