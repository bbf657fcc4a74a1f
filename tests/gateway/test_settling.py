"""What a process does once after loading."""

from __future__ import annotations

import subprocess
import sys


def test_what_is_loaded_is_no_longer_looked_through() -> None:
    code = "import gc; from gateway.settling import settle; settle(); print(gc.get_freeze_count() > 1000)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"
