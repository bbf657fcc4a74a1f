"""For tests that run code in the real sandbox."""

import pytest

from coe.learning.evaluation.isolation import installed
from coe.learning.evaluation.sandbox import Bounds, Sandbox

needs_bubblewrap = pytest.mark.skipif(
    not installed(), reason="bubblewrap is not installed; on Debian or Ubuntu: apt-get install bubblewrap"
)


def checked_sandbox(bounds: Bounds) -> Sandbox:
    """A sandbox that counts as checked, so that each test does not repeat it."""
    sandbox = Sandbox(bounds)
    sandbox._is_checked = True
    return sandbox
