"""The program that pauses processes pauses those below its command, and continues them."""

import subprocess
import sys

CHILD = "import os, signal; signal.signal(signal.SIGCONT, lambda *_: os._exit(7)); signal.pause()"
PARENT = "import subprocess, sys; sys.exit(subprocess.call([sys.executable, '-c', sys.argv[1]]))"


def test_a_process_below_the_command_is_paused_and_continued() -> None:
    command = [sys.executable, "-c", PARENT, f"while True:\n    {CHILD}"]
    pauses = [sys.executable, "-m", "tests.pauses", "--longest", "0.01"]
    assert subprocess.run([*pauses, *command], timeout=60).returncode == 7


def test_a_command_is_required() -> None:
    done = subprocess.run([sys.executable, "-m", "tests.pauses"], capture_output=True, text=True)
    assert (done.returncode, "name the command to run" in done.stderr) == (2, True)
