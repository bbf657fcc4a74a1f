"""Other gateways, configured as their documentation says, with one worker and the same upstream."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

PORTS = {"litellm": 18092, "portkey": 18093, "vllm-router": 18094, "ferro": 18099}
COMMANDS = {"litellm": "litellm", "portkey": "gateway", "vllm-router": "vllm-router", "ferro": "ferrogw"}


@dataclass(frozen=True, slots=True)
class Peer:
    """Command and environment of a gateway, its readiness URL, and headers that its requests need in addition."""

    command: list[str]
    ready: str
    env: dict[str, str]
    headers: dict[str, str] = field(default_factory=dict)


def find(name: str, given: Mapping[str, str]) -> str | None:
    """Return the program of a peer: as given, on PATH, or beside this Python; None if it is missing."""
    command = given.get(name, COMMANDS[name])
    return shutil.which(command) or shutil.which(command, path=Path(sys.executable).parent)


def peer(name: str, program: str, *, upstream: str, key: str, folder: Path) -> Peer:
    return _PEERS[name](program, PORTS[name], upstream, key, folder)


def _litellm(program: str, port: int, upstream: str, key: str, folder: Path) -> Peer:
    config = folder / "litellm.yaml"
    config.write_text(
        f"""model_list:
  - model_name: auto
    litellm_params: {{model: openai/m, api_base: {upstream}/v1, api_key: none}}
general_settings: {{master_key: {key}}}
"""
    )
    command = [program, "--config", str(config), "--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"]
    env = os.environ | {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR"}
    return Peer(command, f"http://127.0.0.1:{port}/health/liveliness", env)


def _portkey(program: str, port: int, upstream: str, key: str, folder: Path) -> Peer:
    env = os.environ | {"TRUSTED_CUSTOM_HOSTS": "127.0.0.1,localhost", "NODE_ENV": "production"}
    headers = {"x-portkey-provider": "openai", "x-portkey-custom-host": f"{upstream}/v1"}
    return Peer([program, f"--port={port}", "--headless"], f"http://127.0.0.1:{port}/", env, headers)


def _vllm_router(program: str, port: int, upstream: str, key: str, folder: Path) -> Peer:
    command = [program, "--host", "127.0.0.1", "--port", str(port), "--worker-urls", upstream]
    command += ["--policy", "round_robin", "--prometheus-port", str(port + 100), "--log-level", "error"]
    return Peer(command, f"http://127.0.0.1:{port}/health", dict(os.environ))


def _ferro(program: str, port: int, upstream: str, key: str, folder: Path) -> Peer:
    config = folder / "ferro.yaml"
    config.write_text("strategy: {mode: single}\ntargets: [{virtual_key: openai}]\naliases: {auto: gpt-4o}\n")
    env = os.environ | {"PORT": str(port), "MASTER_KEY": key, "GATEWAY_CONFIG": str(config), "LOG_LEVEL": "error"}
    env |= {"OPENAI_API_KEY": "none", "OPENAI_BASE_URL": upstream}
    env |= {"RATE_LIMIT_RPS": "1000000", "RATE_LIMIT_BURST": "1000000"}  # the default of each client is 20 or so
    return Peer([program, "serve"], f"http://127.0.0.1:{port}/readyz", env)


_PEERS: Mapping[str, Callable[[str, int, str, str, Path], Peer]] = {
    "litellm": _litellm,
    "portkey": _portkey,
    "vllm-router": _vllm_router,
    "ferro": _ferro,
}
