"""A real nginx before gateways, as deploy/nginx/coe.conf declares it."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from coe.fleet.specs import free_port

CONF = Path(__file__).parent.parent.parent / "deploy" / "nginx" / "coe.conf"
NGINX = shutil.which("nginx", path=os.environ["PATH"] + ":/usr/sbin")
MISSING = "nginx is not installed; on Debian or Ubuntu: apt-get install nginx-light"


@asynccontextmanager
async def balancing(folder: Path, ports: Sequence[int], *, read_timeout: str | None = None) -> AsyncIterator[str]:
    """Its address, before gateways on these loopback ports; runs in `folder` until the block ends. `read_timeout`
    replaces how long it waits for a gateway."""
    assert NGINX
    port = free_port()
    declared = re.sub(r"listen \d+", f"listen 127.0.0.1:{port}", CONF.read_text())
    for number, one in enumerate(ports, start=1):
        declared = declared.replace(f"10.0.0.{number}:8080", f"127.0.0.1:{one}")
    if read_timeout is not None:
        declared = re.sub(r"proxy_read_timeout \w+", f"proxy_read_timeout {read_timeout}", declared)
    temporary = (f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    conf = folder / "nginx.conf"
    conf.write_text(
        f"daemon off; master_process off; pid {folder}/nginx.pid; error_log {folder}/error.log;\n"
        f"events {{}}\nhttp {{ access_log off; {' '.join(temporary)}\n{declared}\n}}"
    )
    process = await asyncio.create_subprocess_exec(NGINX, "-e", f"{folder}/error.log", "-p", folder, "-c", conf)
    try:
        async with asyncio.timeout(60):
            await _listens(port)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        await process.wait()


async def _listens(port: int) -> None:
    while True:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except ConnectionRefusedError:
            await asyncio.sleep(0.02)
        else:
            writer.close()
            await writer.wait_closed()
            return
