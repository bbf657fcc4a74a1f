"""The process's own settings; the only reader of the environment. What the service is lives in experts.yaml."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import orjson

from coe.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where an expert is served and what the server calls its model."""

    base_url: str = field(repr=False)
    model: str


@dataclass(frozen=True, slots=True)
class Settings:
    """Read once at a composition root with `Settings.read()`.

    | variable | meaning | default |
    |---|---|---|
    | COE_CONFIG | the declaration | experts.yaml |
    | COE_HOME | state: artifacts, model cache, logs | .coe beside the declaration |
    | COE_HOST, COE_PORT | where the gateway listens | 127.0.0.1, 8080 |
    | COE_ADMIN_KEY_FILE | a file with an API key of all scopes; generated where it is missing | none |
    | COE_WORKERS | gateway processes | 1 |
    | COE_DRAIN | seconds that a gateway told to stop still works while it says that it is not ready | 0 |
    | COE_API_KEY | the key that `coe chat` and `coe score` send to the gateway | none |
    | COE_LOG_FORMAT | `text`, or `json`: one object a line | text |
    | COE_ACCESS_LOG | 1: a line for every request, without its text | 0 |
    | COE_CHECK_EXPERTS | 1: request one token from every expert at the start, and log the result | 1 |
    | OTEL_EXPORTER_OTLP_ENDPOINT | an OpenTelemetry collector that gets traces | none |
    | OTEL_EXPORTER_OTLP_TRACES_ENDPOINT | the same, with the path | none |
    | COE_ENDPOINTS | where `coe up` serves local experts: JSON {expert: {base_url, model}}, a list of these for several
      replicas, or a file with it | {} |
    | COE_TURNS | a socket, set by `coe up` where its servers take turns | none |
    """

    config: Path
    home: Path
    host: str
    port: int
    admin_key_file: Path | None
    """Where the key of the administrator is kept; None: experts.yaml alone declares keys."""
    workers: int
    drain: int
    """For a balancer to look away; 0 where none is in front."""
    log_format: str
    access_log: bool
    check_experts: bool
    traces: str | None
    """Where OpenTelemetry traces go; None: nowhere."""
    endpoints: Mapping[str, tuple[Endpoint, ...]]
    """At the start; see `served`."""
    endpoints_file: Path | None
    turns: Path | None
    """Where to ask for experts that take turns; None: nobody does."""
    environ: Mapping[str, str]

    @classmethod
    def read(cls, environ: Mapping[str, str] | None = None, *, config: Path | None = None) -> Settings:
        """Read the environment (or the mapping given). Raises ConfigError that names the variable."""
        env = dict(os.environ if environ is None else environ)
        config = (config or Path(env.get("COE_CONFIG", "experts.yaml"))).absolute()
        given = env.get("COE_ENDPOINTS", "{}")
        file = Path(given) if given.startswith("/") else None
        return cls(
            config=config,
            home=Path(env.get("COE_HOME") or config.parent / ".coe").absolute(),
            host=env.get("COE_HOST") or "127.0.0.1",
            port=_number(env, "COE_PORT", default=8080, low=0, high=65535),
            admin_key_file=Path(env["COE_ADMIN_KEY_FILE"]).absolute() if env.get("COE_ADMIN_KEY_FILE") else None,
            workers=_number(env, "COE_WORKERS", default=1, low=1, high=256),
            drain=_number(env, "COE_DRAIN", default=0, low=0, high=3600),
            log_format=_word(env, "COE_LOG_FORMAT", ("text", "json")),
            access_log=_word(env, "COE_ACCESS_LOG", ("0", "1")) == "1",
            check_experts=_word(env, "COE_CHECK_EXPERTS", ("1", "0")) == "1",
            traces=_traces(env),
            endpoints=_endpoints(given if file is None else _text(file)),
            endpoints_file=file,
            turns=Path(env["COE_TURNS"]) if env.get("COE_TURNS") else None,
            environ=env,
        )

    def served(self) -> Mapping[str, tuple[Endpoint, ...]]:
        """Where local experts are served now. Raises ConfigError."""
        return self.endpoints if self.endpoints_file is None else _endpoints(_text(self.endpoints_file))

    @property
    def api_key(self) -> str | None:
        """The key for requests to the gateway; with the scope admin they do not count as a user's."""
        return self.environ.get("COE_API_KEY") or None

    @property
    def artifacts(self) -> Path:
        return self.home / "artifacts"

    @property
    def models(self) -> Path:
        return self.home / "models"

    @property
    def turns_link(self) -> Path:
        """Leads to the socket of the running `coe up`, for `coe status`."""
        return self.home / "turns.sock"

    @property
    def logs(self) -> Path:
        return self.home / "logs"


def _number(env: Mapping[str, str], name: str, *, default: int, low: int, high: int) -> int:
    text = env.get(name, str(default))
    if not text.isascii() or not text.isdigit() or not low <= int(text) <= high:
        raise ConfigError(f"environment: {name}={text!r} is not a whole number from {low} to {high}")
    return int(text)


def _word(env: Mapping[str, str], name: str, words: tuple[str, ...]) -> str:
    """One of `words`, the first of them without one."""
    word = env.get(name) or words[0]
    if word not in words:
        raise ConfigError(f"environment: {name}={word!r} is not {' or '.join(words)}")
    return word


def _traces(env: Mapping[str, str]) -> str | None:
    """By OpenTelemetry's rules: the variable for traces is used as it is, the common one is a base."""
    if env.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    if own := env.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"):
        return own
    base = env.get("OTEL_EXPORTER_OTLP_ENDPOINT")
    return f"{base.rstrip('/')}/v1/traces" if base else None


def _text(file: Path) -> str:
    try:
        return file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"environment: COE_ENDPOINTS={str(file)!r} cannot be read: {error}") from error


def _endpoints(text: str) -> dict[str, tuple[Endpoint, ...]]:
    try:
        return {
            name: tuple(Endpoint(**one) for one in (value if isinstance(value, list) else [value]))
            for name, value in orjson.loads(text).items()
        }
    except (orjson.JSONDecodeError, TypeError, AttributeError) as error:
        raise ConfigError(f"environment: COE_ENDPOINTS is not JSON {{expert: {{base_url, model}}}}: {error}") from error
