"""Runs a command and pauses random processes below it for random times, as a busy machine does.

A test that assumes an order of events or a duration, without waiting for what it needs, fails under it sooner or later:
`python -m tests.pauses --longest 2 scripts/test`.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress

import psutil

MAX_PROCESSES = 3
"""Processes that are paused at the same time."""
MEAN_INTERVAL_SECONDS = 0.2
"""Mean time between two pauses."""


def run(command: Sequence[str], *, longest: float) -> int:
    """Run the command with pauses of up to `longest` seconds, and return its exit status. Short pauses are more
    frequent: the mean is a third of the longest."""
    with subprocess.Popen(command) as process:
        while process.poll() is None:
            _pause(psutil.Process(process.pid), random.random() ** 2 * longest)
            time.sleep(random.uniform(0, 2 * MEAN_INTERVAL_SECONDS))
    return process.returncode


def _pause(parent: psutil.Process, seconds: float) -> None:
    with suppress(psutil.NoSuchProcess):
        below = parent.children(recursive=True)
        victims = random.sample(below, min(len(below), random.randint(1, MAX_PROCESSES)))
        try:
            for victim in victims:
                with suppress(psutil.NoSuchProcess):
                    victim.suspend()
            time.sleep(seconds)
        finally:
            for victim in victims:
                with suppress(psutil.NoSuchProcess):
                    victim.resume()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--longest", type=float, default=1.0, help="longest pause in seconds [default: 1]")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    arguments = parser.parse_args()
    if not arguments.command:
        parser.error("name the command to run, for example scripts/test")
    return run(arguments.command, longest=arguments.longest)


if __name__ == "__main__":
    sys.exit(main())
