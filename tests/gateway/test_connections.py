"""The settings of listeners are changed without an effect on any other open file."""

import asyncio
import fcntl
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.process.connections import resetting_stalled_clients

TRY_LOCK = "import fcntl, sys; fcntl.lockf(open(sys.argv[1], 'r+'), fcntl.LOCK_EX | fcntl.LOCK_NB)"


def is_locked(path: Path) -> bool:
    """Whether another process cannot lock the file."""
    return subprocess.run([sys.executable, "-c", TRY_LOCK, str(path)], capture_output=True, check=False).returncode != 0


@pytest.mark.anyio
async def test_locks_of_files_are_kept_while_listeners_are_configured(tmp_path: Path) -> None:
    """SQLite's shared memory is only safe while its locks are held: without them, another process truncates it."""
    path = tmp_path / "locked"
    path.touch()
    with path.open("r+") as file, socket.create_server(("127.0.0.1", 0)) as listener:
        assert not is_locked(path)
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        async with resetting_stalled_clients(after=1.5):
            while not listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT):
                await asyncio.sleep(0.01)
        assert listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 1500
        assert is_locked(path)
        assert listener.fileno() >= 0
        file.write("still open")
