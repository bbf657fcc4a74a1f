"""The Expert implementations that pass test_conformance.py, each built for one server."""

from __future__ import annotations

from collections.abc import Callable

from pydantic import SecretStr

from coe.core import Expert
from coe.experts import Replica, ReplicatedExpert
from coe.experts.http.client import Client
from coe.experts.http.expert import HttpExpert
from coe.experts.litellm import LitellmExpert
from coe.experts.translation.expert import TranslatedExpert
from coe.registry import ExpertSpec
from coe.settings import Endpoint

Maker = Callable[[ExpertSpec, Endpoint, Client], Expert]


def _http(spec: ExpertSpec, endpoint: Endpoint, session: Client) -> Expert:
    return HttpExpert(spec, endpoint, session=session)


def _replicated(spec: ExpertSpec, endpoint: Endpoint, session: Client) -> Expert:
    replicas = [Replica(HttpExpert(spec, endpoint, session=session), endpoint=endpoint)]
    return ReplicatedExpert(spec, (endpoint,), replicas=replicas)


def _litellm(spec: ExpertSpec, endpoint: Endpoint, _: Client) -> Expert:
    provider = {"runtime": "litellm", "model": f"custom_openai/{endpoint.model}", "api_key": SecretStr("none")}
    return LitellmExpert(spec.model_copy(update=provider), endpoint)


def _translated(spec: ExpertSpec, endpoint: Endpoint, session: Client) -> Expert:
    return TranslatedExpert(_http(spec, endpoint, session), spec)


MAKERS: dict[str, Maker] = {"http": _http, "replicated": _replicated, "litellm": _litellm, "translated": _translated}
