"""The live check of `coe check --live` and of the start of `coe up`: every declared expert is asked for one token."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from coe.experts import build_experts
from coe.experts.http.client import Client
from coe.experts.live_check import Finding, check_experts
from coe.registry import Registry
from coe.settings import Endpoint, Settings

ENDPOINTS = "endpoints.json"
"""The file of the state folder in which `coe up` writes where it serves local experts."""


async def check_live(registry: Registry, settings: Settings) -> list[Finding]:
    """Check all experts but those that take turns on a device: a check would make them switch. A local expert that
    `coe up` does not run is a finding too. Raises ConfigError."""
    served = _served(settings)
    checked, missing = [], []
    for spec in registry.experts:
        local = not spec.addresses and spec.runtime != "litellm"
        if local and registry.residency is not None:
            continue
        if local and not served.get(spec.name):
            missing.append(
                Finding(spec.name, "this machine", "connection_refused", "it is not running", "start it with `coe up`")
            )
        else:
            checked.append(spec)
    found = registry.model_copy(update={"experts": tuple(checked)})
    async with Client() as session:
        experts = build_experts(found, served, session=session)
        try:
            return [*await check_experts(experts.values(), session=session), *missing]
        finally:
            for expert in experts.values():
                await expert.aclose()


def _served(settings: Settings) -> Mapping[str, tuple[Endpoint, ...]]:
    """The addresses of local experts: as the environment says, else as the latest `coe up` wrote."""
    if served := settings.served():
        return served
    file = settings.home / ENDPOINTS
    return replace(settings, endpoints_file=file).served() if file.exists() else {}
