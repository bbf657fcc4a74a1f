"""Tells the gateways what a look at the traffic found, for their `/metrics`."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from coe.artifacts.atomic_files import replace_file
from coe.artifacts.redis import share_at
from coe.learning.monitoring.traffic_report import FILE, Watch
from coe.registry import load
from coe.settings import Settings


def publish(settings: Settings, report: Mapping[str, Any]) -> None:
    """Leave it beside the artifacts, where gateways look, and tell other machines. `report` is that of `coe status`."""
    content = Watch.of(report, now=time.time()).to_json()
    settings.artifacts.mkdir(parents=True, exist_ok=True)
    share = share_at(load(settings.config, environ=settings.environ).artifacts)
    if share is not None:
        share.tell(FILE, content)  # first, or a gateway here could put the former one back
    replace_file(settings.artifacts / FILE, content)
