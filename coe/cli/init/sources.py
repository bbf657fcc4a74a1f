"""Sources of models for `coe init`: servers of this machine, hosted providers, and given endpoints."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal
from urllib.parse import urlsplit

from coe.errors import ConfigError

LOCAL_TIMEOUT = 1.0
"""Seconds for a server of this machine to list its models."""
REMOTE_TIMEOUT = 10.0
"""Seconds for a provider or an endpoint to list its models."""
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
"""Name of an environment variable."""


@dataclass(frozen=True, slots=True)
class Source:
    """A server or provider that may list models.

    - `name`: part of the names of experts, and how the command line refers to it.
    - `base_urls`: addresses to try, the first that lists models is used.
    - `kind`: a local server that might not be running, a hosted provider, or an address that the user gave.
    - `key_env`: environment variable of its key; empty without one.
    - `prefix`: what litellm's table, and runtime litellm, put before the name of its models.
    - `runtime`: runtime of its experts. Providers of runtime litellm have their own API.
    """

    name: str
    base_urls: tuple[str, ...]
    kind: Literal["local", "provider", "endpoint"]
    key_env: str = ""
    prefix: str = ""
    runtime: str = "external"
    timeout: float = REMOTE_TIMEOUT


def _local(name: str, port: int) -> Source:
    return Source(name, (f"http://127.0.0.1:{port}/v1",), "local", timeout=LOCAL_TIMEOUT)


LOCAL_SERVERS: tuple[Source, ...] = (
    _local("ollama", 11434),
    _local("vllm", 8000),
    _local("llama.cpp", 8080),
    _local("lmstudio", 1234),
    _local("sglang", 30000),
)
"""Servers with their usual ports."""


def _provider(name: str, url: str, key_env: str, prefix: str | None = None) -> Source:
    return Source(name, (url,), "provider", key_env, f"{name}/" if prefix is None else prefix)


PROVIDERS: tuple[Source, ...] = (
    _provider("openai", "https://api.openai.com/v1", "OPENAI_API_KEY", ""),
    Source(
        "anthropic", ("https://api.anthropic.com/v1",), "provider", "ANTHROPIC_API_KEY", "anthropic/", runtime="litellm"
    ),
    _provider("gemini", "https://generativelanguage.googleapis.com/v1beta/openai", "GEMINI_API_KEY"),
    _provider("mistral", "https://api.mistral.ai/v1", "MISTRAL_API_KEY"),
    _provider("groq", "https://api.groq.com/openai/v1", "GROQ_API_KEY"),
    _provider("deepseek", "https://api.deepseek.com/v1", "DEEPSEEK_API_KEY"),
    _provider("xai", "https://api.x.ai/v1", "XAI_API_KEY"),
    _provider("openrouter", "https://openrouter.ai/api/v1", "OPENROUTER_API_KEY"),
    _provider("together", "https://api.together.xyz/v1", "TOGETHER_API_KEY", "together_ai/"),
    _provider("fireworks", "https://api.fireworks.ai/inference/v1", "FIREWORKS_API_KEY", "fireworks_ai/"),
    _provider("cerebras", "https://api.cerebras.ai/v1", "CEREBRAS_API_KEY"),
)
"""Hosted providers with the variables that their own clients read."""
_FURTHER_ADDRESSES: Mapping[str, tuple[str, ...]] = {
    "gemini": ("GOOGLE_GEMINI_BASE_URL",),
    "together": ("TOGETHER_AI_API_BASE",),
    "fireworks": ("FIREWORKS_AI_API_BASE",),
}
"""Variables by which litellm and the provider's own client take another address for its key, where their names do not
follow from that of the key."""


def provider(name: str, environ: Mapping[str, str]) -> Source:
    """Return the provider of this name, at the address that the environment gives it: its key goes nowhere else.

    Raises ConfigError for an unknown name, for an address that is none, and for two that differ.
    """
    known = {one.name: one for one in PROVIDERS}
    if name not in known:
        raise ConfigError(
            f"--provider {name}: unknown provider; known: {', '.join(known)}. Any other OpenAI-compatible API can be "
            "given as --endpoint"
        )
    prefix = known[name].key_env.removesuffix("_API_KEY")
    variables = (f"{prefix}_BASE_URL", f"{prefix}_API_BASE", *_FURTHER_ADDRESSES.get(name, ()))
    given = {
        variable: endpoint(url, option=variable).base_urls for variable in variables if (url := environ.get(variable))
    }
    if len(set(given.values())) > 1:
        raise ConfigError(f"{' and '.join(given)} are different addresses for {known[name].key_env}; unset all but one")
    return replace(known[name], base_urls=next(iter(given.values()), known[name].base_urls))


def endpoint(url: str, *, option: str = "--endpoint") -> Source:
    """Return the source of an address that the user gave, with and without /v1.

    Raises ConfigError if it is not an http or https address, or holds credentials, which would end up in experts.yaml.
    """
    address = url if "://" in url else f"http://{url}"
    try:
        parts = urlsplit(address)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        host, port = "", None
    if not host or parts.scheme not in ("http", "https"):
        raise ConfigError(f"{option}: write http://HOST:PORT/v1 or https://HOST/v1")
    if parts.username is not None or parts.query or parts.fragment:
        raise ConfigError(
            f"{option} {parts.scheme}://{host}: leave out user, password and query, which may hold a key; put the "
            "key into an environment variable and name it with --key-env"
        )
    base = address.rstrip("/")
    versioned = base if re.search(r"/v\d+(beta\d*)?(/openai)?$", base) else f"{base}/v1"
    name = re.sub(r"[^A-Za-z0-9.-]", "-", host) + (f"-{port}" if port else "")
    return Source(name, tuple(dict.fromkeys((versioned, base))), "endpoint")


def in_environment(environ: Mapping[str, str]) -> list[Source]:
    """Return the providers whose key is set. Raises ConfigError for an address of one that is none."""
    return [provider(one.name, environ) for one in PROVIDERS if environ.get(one.key_env)]


def with_keys(sources: Sequence[Source], keys: Sequence[str], environ: Mapping[str, str]) -> list[Source]:
    """Apply `--key-env`: VARIABLE for a single source, or NAME=VARIABLE for the one of that name or address.

    Raises ConfigError for a source that does not exist, and for a variable that is not set. It does not repeat the
    text, which is the key itself if the user misunderstood the option.
    """
    found = list(sources)
    for text in keys:
        target, _, variable = text.rpartition("=")
        if not VARIABLE.fullmatch(variable) or not environ.get(variable):
            raise ConfigError(
                "--key-env: name an environment variable that is set, not the key itself; export it first"
            )
        named = [one for one in found if target in (one.name, *one.base_urls)] if target else found
        if len(named) != 1:
            names = ", ".join(one.name if one.kind == "provider" else one.base_urls[0] for one in found)
            raise ConfigError(f"--key-env: write NAME=VARIABLE for one of the given sources: {names or 'none'}")
        found = [replace(one, key_env=variable) if one is named[0] else one for one in found]
    return found
