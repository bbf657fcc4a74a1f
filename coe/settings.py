"""Settings of a process from environment variables. No other module reads the environment.

experts.yaml declares the service itself.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import orjson

from coe.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Base URL of an expert's server, and the server's name of the model."""

    base_url: str = field(repr=False)
    model: str


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of a process, read once at its start with `Settings.read()`.

    | variable | meaning | default |
    |---|---|---|
    | COE_CONFIG | path of the declaration | experts.yaml |
    | COE_HOME | state folder: artifacts, model cache, logs | .coe next to the declaration |
    | COE_HOST, COE_PORT | address of the gateway | 127.0.0.1, 8080 |
    | COE_ADMIN_KEY_FILE | file with an API key of all scopes; created if missing | none |
    | COE_WORKERS | number of gateway processes | 1 |
    | COE_DRAIN | seconds between a stop signal and shutdown, during which the gateway serves but is not ready | 0 |
    | COE_API_KEY | API key that CoE commands send to the gateway | none |
    | COE_LOG_FORMAT | `text`, or `json` (one object per line) | text |
    | COE_ACCESS_LOG | 1: log a line for each request, without its text | 0 |
    | COE_CHECK_EXPERTS | 1: `coe up` requests a few tokens from each expert at its start | 1 |
    | OTEL_EXPORTER_OTLP_ENDPOINT | OpenTelemetry collector for traces | none |
    | OTEL_EXPORTER_OTLP_TRACES_ENDPOINT | the same, including the path | none |
    | COE_ENDPOINTS | servers of local experts, set by `coe up`: JSON {expert: {base_url, model}}, a list for several
      replicas, or the absolute path of a file with this JSON | {} |
    | COE_RESIDENCY_SOCKET | socket of the residency scheduler, set by `coe up` if local experts share devices | none |
    """

    config: Path
    home: Path
    host: str
    port: int
    admin_key_file: Path | None
    """File with the administrator's key; None: only experts.yaml declares keys."""
    workers: int
    drain: int
    """Lame-duck period in seconds, for load balancers to notice that the gateway is not ready."""
    log_format: str
    access_log: bool
    check_experts: bool
    traces: str | None
    """URL for OpenTelemetry traces; None: no traces."""
    endpoints: Mapping[str, tuple[Endpoint, ...]]
    """Servers of local experts at the start; `served` returns the current ones."""
    endpoints_file: Path | None
    residency_socket: Path | None
    """Socket of the residency scheduler; None without residency."""
    environ: Mapping[str, str]

    @classmethod
    def read(cls, environ: Mapping[str, str] | None = None, *, config: Path | None = None) -> Settings:
        """Read the environment (or `environ`). Raises ConfigError that names the variable."""
        env = dict(os.environ if environ is None else environ)
        config = (config or Path(env.get("COE_CONFIG", "experts.yaml"))).absolute()
        value = env.get("COE_ENDPOINTS", "{}")
        file = Path(value) if value.startswith("/") else None
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
            endpoints=_endpoints(value if file is None else _text(file)),
            endpoints_file=file,
            residency_socket=Path(env["COE_RESIDENCY_SOCKET"]) if env.get("COE_RESIDENCY_SOCKET") else None,
            environ=env,
        )

    def served(self) -> Mapping[str, tuple[Endpoint, ...]]:
        """Return the current servers of local experts. Raises ConfigError."""
        return self.endpoints if self.endpoints_file is None else _endpoints(_text(self.endpoints_file))

    @property
    def api_key(self) -> str | None:
        """API key for requests of CoE commands to the gateway. With scope admin they do not count as user requests."""
        return self.environ.get("COE_API_KEY") or None

    @property
    def reachable_host(self) -> str:
        """An address at which this machine reaches its gateway."""
        return "127.0.0.1" if self.host in ("0.0.0.0", "::", "") else self.host  # noqa: S104

    @property
    def artifacts(self) -> Path:
        return self.home / "artifacts"

    @property
    def models(self) -> Path:
        return self.home / "models"

    @property
    def logs(self) -> Path:
        return self.home / "logs"


def _number(env: Mapping[str, str], name: str, *, default: int, low: int, high: int) -> int:
    text = env.get(name, str(default))
    if not text.isascii() or not text.isdigit() or not low <= int(text) <= high:
        raise ConfigError(f"environment: {name}={text!r} is not a whole number from {low} to {high}")
    return int(text)


def _word(env: Mapping[str, str], name: str, words: tuple[str, ...]) -> str:
    """Return one of `words`; by default the first."""
    word = env.get(name) or words[0]
    if word not in words:
        raise ConfigError(f"environment: {name}={word!r} is not {' or '.join(words)}")
    return word


def _traces(env: Mapping[str, str]) -> str | None:
    """Return the URL for traces by OpenTelemetry's rules: the traces variable as it is, the common one as a base."""
    if env.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    if url := env.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"):
        return url
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
