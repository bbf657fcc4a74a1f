"""Runs the `coe` command with a router that needs no training: the arguments are those of `coe`."""

from __future__ import annotations

import coe.artifacts.active_state
from coe.cli import main
from tests.fakes import WordRouter

if __name__ == "__main__":
    coe.artifacts.active_state.load_router = lambda *_: WordRouter()
    main()
