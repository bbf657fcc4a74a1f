"""One browser for a module's tests; each test visits with a context of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from playwright.async_api import Browser

from gateway.ui import ASSETS
from tests.ui.browsing import browsing
from tests.ui.playground import Playground, open_playground


@pytest.fixture(scope="module")
async def browser() -> AsyncIterator[Browser]:
    assert (ASSETS / "vendor" / "versions.json").exists(), (
        "what the page takes from others is missing: run scripts/vendor.py"
    )
    async with browsing() as browser:
        yield browser


@pytest.fixture(scope="module")
async def playground(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Playground]:
    async with open_playground(tmp_path_factory.mktemp("playground")) as playground:
        yield playground
