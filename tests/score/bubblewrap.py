"""For tests that run code in the real sandbox."""

import pytest

from coe.measuring.sandbox import installed

needs_bubblewrap = pytest.mark.skipif(
    not installed(), reason="bubblewrap is not installed; on Debian or Ubuntu: apt-get install bubblewrap"
)
