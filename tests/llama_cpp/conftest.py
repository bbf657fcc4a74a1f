"""The folder of a real `llama-server`."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def bin_folder() -> Path:
    found = shutil.which("llama-server", path=os.environ.get("LLAMA_SERVER_BIN"))
    assert found, "run these with scripts/test-llama-cpp, which makes the program that they need"
    return Path(found).parent
