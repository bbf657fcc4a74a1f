"""What each cause of a failure means, and what an operator can do about it."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from coe.errors import Cause

REMEDIES: Mapping[Cause, tuple[str, str]] = MappingProxyType(
    {
        "connection_refused": (
            "nothing listens at its address",
            "start the server, or correct host and port of `base_url` in experts.yaml",
        ),
        "connect_timeout": (
            "its address does not accept a connection in time",
            "check host and port of `base_url`, the firewall and the network between",
        ),
        "name_resolution": (
            "its host name does not resolve",
            "correct the host of `base_url`, or the DNS of this machine",
        ),
        "tls_error": (
            "no TLS connection came about",
            "write http:// if the server speaks plain HTTP; else install its CA certificate on this machine or renew "
            "the server's certificate",
        ),
        "unreachable": (
            "its address cannot be reached",
            "check `base_url` and the network to it",
        ),
        "connection_lost": (
            "the server broke off the connection",
            "read the server's own log; write https:// if it speaks TLS",
        ),
        "unauthorized": (
            "it refuses the api_key",
            "set `api_key` of the expert in experts.yaml, such as ${OPENAI_API_KEY}, to a key that is valid there",
        ),
        "forbidden": (
            "it forbids the request",
            "check what the `api_key` of the expert may use, and the provider's content policy",
        ),
        "model_not_found": (
            "it does not serve the declared model",
            "correct `model` of the expert in experts.yaml to a name that the server lists at /v1/models",
        ),
        "not_found": (
            "its address has no such API",
            "let `base_url` end where the API begins, as a rule in /v1",
        ),
        "rate_limited": (
            "its rate limit is reached",
            "lower the traffic to it, or ask the provider for a higher limit",
        ),
        "quota_exceeded": (
            "the quota or the credit of its account is used up",
            "raise the quota or pay at the provider",
        ),
        "overloaded": ("the server is overloaded or still starting", "add replicas, or wait until it has started"),
        "server_error": ("the server answers with an error", "read the server's own log"),
        "unexpected_status": (
            "it answers with a status that is none of the API's",
            "check that `base_url` is the API itself, not a page or a redirect to it",
        ),
        "timeout": (
            "it does not answer in time",
            "check the server's load, or raise `policy.first_token_timeout` and `policy.response_timeout`",
        ),
        "invalid_response": (
            "its answer is not the declared API",
            "check that `base_url` leads to an OpenAI-compatible API and that `apis` names what it speaks",
        ),
        "rejected": ("it rejects the request", "check the `parameters` of the expert"),
        "unsupported": ("it does not speak the API of the request", "declare the `apis` that the server speaks"),
        "asleep": ("it shares a device and was not loaded in time", "see `residency` in experts.yaml"),
        "hedged": ("it was slower than the expert asked beside it", "see `policy.hedge` in experts.yaml"),
        "gateway_limit": (
            "the gateway had no file descriptor left for a connection",
            "raise its limit of open files (`ulimit -n`, LimitNOFILE in systemd)",
        ),
        "circuit_open": ("it failed too often lately", "see the causes in the log of the gateway"),
        "error": ("it fails", "read the server's own log"),
    }
)
"""By cause: what is wrong, as the rest of a sentence, and the remedy."""
