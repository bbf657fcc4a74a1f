"""Runs the `coe` command with a router that needs no training: the arguments are those of `coe`."""

from __future__ import annotations

import gateway.in_use
from coe.cli import main
from tests.fakes import WordRouter

if __name__ == "__main__":
    gateway.in_use.load_router = lambda *_: WordRouter()
    main()
