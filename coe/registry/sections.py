"""Sections of experts.yaml: `policy`, `budget`, `residency`, `limits`, `access`, `cache`, `log`, `retrieval`; and their
base class.

Names that clients may send as `model`: `aliases` and `operating_points` of experts.yaml, and their resolution.

An alias is a name, or a pattern in which `*` stands for any characters. A declared name comes first, then an exact
alias, then the first pattern that matches, in the order of the declaration.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr
from pydantic_core import PydanticCustomError

from coe.core import Scope


def _reachable(url: str) -> str:
    """Reject a URL without a valid host and port, which would otherwise fail only on the first request."""
    if "${" in url:  # an unset variable, which is reported elsewhere or stays as it is
        return url
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
        fits = bool(host) and port != 0
        if ":" not in host:
            host.encode("idna")
    except ValueError:
        fits = False
    if not fits:
        raise PydanticCustomError("url", "no host and port (1 to 65535) to connect to; write http://HOST:PORT/v1")
    return url


def _in_utc(moment: datetime) -> datetime:
    """Return the moment with a time zone, UTC where none is written."""
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


def one_as_list(declared: Any) -> Any:
    """Return a list of one name in place of the name itself."""
    return [declared] if isinstance(declared, str) else declared


Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
ExpertPattern = Annotated[str, Field(pattern=r"^[A-Za-z0-9*][A-Za-z0-9*._-]{0,128}$")]
"""Name of an expert, or a pattern in which `*` stands for any characters."""
Url = Annotated[str, Field(pattern=r"^https?://[^\s/]+"), AfterValidator(_reachable)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
Probability = Annotated[float, Field(ge=0, le=1)]
Flag = str | bool | int | float


class StrictModel(BaseModel):
    """Base of all sections: immutable, unknown keys are errors, docstrings of fields become their descriptions."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class ExplorationSpec(StrictModel):
    """Random selection of other experts for a share of requests. With it the routing log measures all experts, so that
    a change of the plan can be evaluated before it is made. Off by default (rate 0)."""

    rate: Probability = 0.0
    """Share of routed requests that explore. Pinned, sticky and uncertain requests never explore."""
    max_quality_loss: Probability = 0.05
    """Largest loss of expected quality that exploration may cost a request."""


class Policy(StrictModel):
    """Selection of an expert, and the handling of experts that are overloaded, slow or failing."""

    confidence_threshold: Probability | None = None
    """Below this confidence the general expert answers. Default: the threshold that training found."""
    sticky_margin: Annotated[float, Field(ge=0)] = 0.2
    """A follow-up keeps its conversation's expert unless another one is better by more than this, in expected quality
    minus price."""
    cost_weight: Probability = 0.0
    """Weight of cost against quality: 0 best quality, 1 cheapest. It is the expected quality to give up for an expert
    that costs nothing instead of the most expensive one."""
    cost_weight_limits: tuple[Probability, Probability] = (0.0, 1.0)
    """Lowest and highest cost_weight that a request may set with the header x-coe-cost-weight."""
    max_quality_loss: Probability = 0.02
    """If an expert is overloaded, its request goes to another expert that is worse by at most this, in expected quality
    minus price."""
    exploration: ExplorationSpec = ExplorationSpec()
    """Random selection of other experts for a share of requests."""
    max_attempts: Annotated[int, Field(ge=1, le=10)] = 3
    """Largest number of calls to experts for one request, the first one included. A recipe counts as one call."""
    max_calls: Annotated[int, Field(ge=2, le=16)] = 4
    """Largest number of calls to experts for one request of a recipe."""
    max_stream_hold: Annotated[float, Field(ge=0, le=600)] = 2.0
    """Longest time in seconds that a recipe holds a stream back after its first token, to compare answers. After that
    the best answer so far is streamed without further comparison."""
    timeout: Positive = 600.0
    """Seconds for a whole request. A request may set a smaller value with the header x-coe-timeout."""
    first_token_timeout: Positive = 120.0
    """Seconds until the first token of a stream."""
    response_timeout: Positive = 300.0
    """Seconds until a complete response that is not streamed."""
    stream_idle_timeout: Positive = 60.0
    """Longest pause within a stream, in seconds."""
    keep_alive_interval: Positive = 10.0
    """Seconds without a byte after which a stream gets a comment (Messages: a `ping` event), so that no proxy closes
    it. It begins with the response headers, once no other expert can take over."""


class BudgetSpec(StrictModel):
    """Constraints for `coe plan`. `coe check` also verifies `memory_gb` against the local experts."""

    memory_gb: Positive | None = None
    """Largest memory of all hosted experts together, in GB."""
    mean_active_b: Positive | None = None
    """Largest mean number of active parameters per request, in billions."""
    mean_cost: Positive | None = None
    """Largest mean cost in US dollars per thousand requests."""
    mean_latency_ms: Positive | None = None
    """Largest mean latency per request in milliseconds, as `coe score` measured it or else as `latency_ms` declares.
    Waits for experts that share devices do not count."""
    max_share: Annotated[float, Field(gt=0, le=1)] | None = None
    """Largest share of requests for one expert."""


class DeviceSpec(StrictModel):
    """Memory that local experts share: one GPU, several GPUs that hold one expert together, or a machine's RAM."""

    name: Name
    """Name of the device, for `experts.device`."""
    memory_gb: Positive
    """Memory for experts in GB, without what other programs use."""
    gpus: tuple[Annotated[int, Field(ge=0)], ...] = ()
    """GPUs of the device, numbered as by nvidia-smi, to which its servers are confined."""


class ResidencySpec(StrictModel):
    """Local experts that share devices and are woken on demand. Each of them needs memory_gb."""

    devices: tuple[DeviceSpec, ...] = Field(min_length=1)
    """Devices that the experts share."""
    sleep_memory_gb: Annotated[float, Field(ge=0)] = 0.0
    """RAM in GB for experts that sleep with their weights in RAM, divided evenly among the devices. Experts that
    do not fit are stopped."""
    max_wait: Positive = 30.0
    """Seconds that a request waits for its expert before busy ones take no new requests and make room. Under overload,
    a request then also waits for its turn among other experts."""
    wait_timeout: Positive = 120.0
    """Seconds after which a request that still waits goes to the next expert that is awake, or fails with 503."""


_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://([a-z0-9._-]+|\[[0-9a-f:.]+\])(:[0-9]{1,5})?")
_DEFAULT_PORT = re.compile(r"(?<=^http)(://.*):80$|(?<=^https)(://.*):443$")
_HOST = re.compile(r"(\*\.)?[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?)*")


def _origin(text: str) -> str:
    """Normalize an origin to the form that browsers send."""
    if not _ORIGIN.fullmatch(text.lower()):
        raise PydanticCustomError(
            "origin", "an origin is scheme://host or scheme://host:port, without a path; write https://app.example.com"
        )
    return _DEFAULT_PORT.sub(r"\1\2", text.lower())


def _host(text: str) -> str:
    if not _HOST.fullmatch(text.lower()):
        raise PydanticCustomError(
            "host", "a host is a name without scheme and port; write llm.example.com, or *.example.com for all below it"
        )
    return text.lower()


Origin = Annotated[str, AfterValidator(_origin)]
Host = Annotated[str, AfterValidator(_host)]


class Limits(StrictModel):
    """Limits of one gateway process."""

    concurrent_requests: Count = 1024
    """Largest number of requests in progress. Further requests wait in a queue. One key may hold all but a sixteenth,
    so that other keys find some free."""
    queued_requests: Annotated[int, Field(ge=0)] = 1024
    """Length of the queue, which serves the API key with fewest requests in progress first. One key may hold all
    but a sixteenth; when none is left for it, its request fails with 429."""
    queue_timeout: Positive = 10.0
    """Seconds that a request waits in the queue before it fails with 429."""
    max_body_mb: Annotated[float, Field(ge=0.001, le=1024)] = 20.0
    """Largest size of a request body in MiB; with the stored conversation that it continues."""
    body_memory_mb: Annotated[int, Field(ge=1)] = 512
    """Memory in MiB for bodies over 64 KiB until their responses begin, at least 12 times max_body_mb. One key may use
    half of it. Answers over 64 KiB that are held whole until they are sent have as much again, at least 128."""
    max_json_values: Annotated[int, Field(ge=1000)] = 500_000
    """Largest number of JSON values in a body over 64 KiB. An object or array counts as 10."""


class KeyLimits(StrictModel):
    """Limits of one API key. Default: none."""

    requests_per_minute: Count | None = None
    """Largest number of requests per minute."""
    tokens_per_minute: Count | None = None
    """Largest number of input and output tokens per minute: estimated before the response, corrected after it."""
    concurrent_requests: Count | None = None
    """Largest number of requests in progress."""
    dollars_per_day: Positive | None = None
    """Largest cost per day in US dollars, by the experts' prices. A day begins at midnight UTC."""
    dollars_per_month: Positive | None = None
    """Largest cost per calendar month (UTC) in US dollars."""


MAX_PATTERNS = 100
"""Names and patterns of the experts of one key; each is compared with each expert."""


class KeySpec(StrictModel):
    """Rights, lifetime and limits of an API key."""

    name: Name
    """Name of the key in logs and records."""
    tenant: Name | None = None
    """Tenant that the key's requests belong to. Default: the key's name, which no other key may declare as its
    tenant."""
    scopes: frozenset[Scope] = frozenset(("chat", "route", "feedback"))
    """Permissions of the key."""
    limits: KeyLimits = KeyLimits()
    """Limits of the key."""
    experts: Annotated[tuple[ExpertPattern, ...], Field(min_length=1, max_length=MAX_PATTERNS)] | None = None
    """Experts that the key may use, by name or by a pattern with `*`, at most 100. All others are refused, and so
    are recipes that call one of them. Default: all experts."""
    only_local: bool = False
    """Requests of the key reach only experts that run locally: those whose server CoE starts, or declared with `local:
    true`. The routing log never stores their text."""
    cache: bool = True
    """With the section `cache`: false makes the key private. Its requests are not answered from the cache, and their
    answers are not stored."""
    expires: Annotated[datetime, AfterValidator(_in_utc)] | None = None
    """Date, or date and time, from which requests with the key are refused; without a time zone in UTC. Default:
    never."""


class ApiKey(KeySpec):
    """One API key. `coe key NAME` creates a key and prints its entry."""

    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """SHA-256 digest of the key, hexadecimal. The key itself is not stored."""


FILE = "file"
"""Value of `access.counters` for files in the state folder, which all gateway processes of a machine share."""


class AccessSpec(StrictModel):
    """Access control. Without keys everyone has access, and the gateway listens on loopback only."""

    keys: tuple[ApiKey, ...] = ()
    """API keys."""
    counters: Annotated[str, Field(pattern=rf"^({FILE}|rediss?://.+)$")] = FILE
    """Store of the usage of keys, and of issued keys: `file` (in the state folder, for all processes of one machine) or
    redis://HOST:PORT/DB (all gateways together)."""
    allowed_origins: tuple[Origin, ...] = ()
    """Origins of web pages that may call the API, besides the gateway's own, such as https://app.example.com. Without
    keys they have full access."""
    allowed_hosts: tuple[Host, ...] = ()
    """Host names that requests may use for this gateway, such as llm.example.com or *.example.com. IP addresses and
    localhost are always accepted. Default: a gateway on loopback accepts only those, any other gateway accepts every
    name."""


class CacheSpec(StrictModel):
    """Exact answer cache: a request that is identical to an earlier one of the same tenant gets the stored answer, byte
    for byte, without a call to an expert."""

    ttl: Annotated[float, Field(gt=0, le=30 * 86400)] = 3600.0
    """Seconds for which an answer is used."""
    store: Annotated[str, Field(pattern=r"^(memory|rediss?://.+)$")] = "memory"
    """Store of the answers: `memory` (each gateway process separately) or redis://HOST:PORT/DB (all gateways
    together)."""
    max_bytes: Annotated[int, Field(ge=2**20, le=2**40)] = 64 * 2**20
    """Largest size of all answers together, in bytes. The oldest answers are deleted first."""
    when: Literal["deterministic", "always"] = "deterministic"
    """Requests that use the cache. `deterministic`: those with `temperature: 0` or a `seed`. `always`: all."""


class StoredResponsesSpec(StrictModel):
    """Answers of the Responses API that clients may refer to later, by `previous_response_id`, by an item's id, or by
    GET and DELETE /v1/responses/ID. Requests with `store: false` are not stored. Tenants, and API keys without one, are
    separate."""

    store: Annotated[str, Field(pattern=r"^(sqlite|none|rediss?://.+)$")] = "sqlite"
    """Store of the answers: `sqlite` (a file in the state folder, for all gateway processes of one machine),
    redis://HOST:PORT/DB (all gateways together), or `none`."""
    lifetime: Annotated[float, Field(gt=0, le=365 * 86400)] = 7 * 86400.0
    """Seconds for which an answer is stored."""
    max_bytes: Annotated[int, Field(ge=2**20, le=2**40)] = 64 * 2**20
    """Largest size of the answers of one tenant or API key together, in bytes. The oldest answers are deleted first."""


class LogSpec(StrictModel):
    """The routing log."""

    url: Annotated[str, Field(pattern=r"^(sqlite:///|rediss?://)")] = "sqlite:///routing-log.sqlite"
    """Storage of the log: sqlite:///FILE (relative to the state folder) or redis://HOST:PORT/DB."""
    keep_records: Count = 500_000
    """Number of the newest records to keep, and of the newest feedback events. A record takes about 2 kB."""
    keep_days: Positive = 90.0
    """Days after which records and feedback are deleted."""
    store_prompts: bool = False
    """Store the routed text; otherwise only its SHA-256 digest."""


class AlarmsSpec(StrictModel):
    """Reactions to the alarms about experts that a report raises."""

    webhook: Url | None = None
    """URL that new alarms are posted to as JSON, with their text in `text`, as Slack reads it. Write ${NAME} for a
    secret part of it."""
    secret: SecretStr | None = None
    """Secret that signs the webhook's requests (Standard Webhooks, HMAC-SHA256). Write ${NAME}."""
    demote: bool = False
    """Send the categories in which an expert got worse to the next best expert, until it is measured again."""


class RetrievalPrice(StrictModel):
    """Gain in expected quality (0 to 1) that passages must exceed, by the tokens and time that retrieval
    took when the gate was fitted."""

    per_thousand_tokens: Annotated[float, Field(ge=0)] = 0.1
    """Required gain per thousand tokens of passages."""
    per_second: Annotated[float, Field(ge=0)] = 0.1
    """Required gain per second of retrieval."""


class RetrievalSpec(StrictModel):
    """Retrieval of passages from documents. `coe index` fills the document store."""

    store: Annotated[str, Field(pattern=r"^lancedb:///")] | None = None
    """Document store: lancedb:///FOLDER (relative to the state folder). Without it retrieval is off."""
    collections: tuple[str, ...] = ()
    """Collections to search. Default: all."""
    max_passages: Annotated[int, Field(ge=1, le=20)] = 4
    """Largest number of passages per request."""
    max_tokens: Annotated[int, Field(ge=64)] = 1024
    """Largest size of all passages together, in estimated tokens. An expert with a short context gets fewer."""
    min_similarity: Annotated[float, Field(ge=-1, le=1)] = 0.2
    """Smallest cosine similarity of a passage to the question. Passages below it are left out."""
    default_similarity: Annotated[float, Field(ge=-1, le=1)] = 0.45
    """Smallest cosine similarity of the best passage for which a request gets passages while no gate is fitted. It
    depends on the encoder; the default is for the starter router's. 1 disables it: only requests with x-coe-retrieval:
    on then get passages."""
    timeout: Positive = 0.5
    """Seconds for retrieval. If the store is slower, the request continues without passages."""
    price: RetrievalPrice = RetrievalPrice()
    """Price of passages, which their expected gain must exceed."""


AUTO = "auto"
"""Model name with which a client requests routing. No expert may use it."""
POINT_PREFIX = "coe/"
"""Beginning of the model name of an operating point. No declared name has a slash."""
MAX_ALIASES = 256
MAX_MODEL_CHARACTERS = 256
"""Characters of a value of `model` that is compared with patterns."""

AliasName = Annotated[str, Field(pattern=r"^[!-~]{1,128}$")]
"""A model name, or a pattern with `*`: printable ASCII characters without spaces."""


class OperatingPoint(StrictModel):
    """A named trade-off between quality and cost. A client that sends `coe/NAME` as `model` is routed as with `auto`,
    at this cost weight."""

    cost_weight: Probability
    """Weight of cost against quality: 0 best quality, 1 cheapest. `policy.cost_weight_limits` does not apply to it; the
    header x-coe-cost-weight of a request overrides it."""


@dataclass(frozen=True, slots=True)
class ResolvedModel:
    """The target of a value of `model`: `auto`, or the name of an expert or recipe.

    `cost_weight` is that of an operating point, None for others.
    """

    model: str
    cost_weight: float | None = None


class ModelNames:
    """Resolves values of `model`. `declared` are the names of experts and recipes."""

    def __init__(
        self, declared: Collection[str], aliases: Mapping[str, str], points: Mapping[str, OperatingPoint]
    ) -> None:
        models = {name: ResolvedModel(name) for name in (AUTO, *declared)}
        models |= {POINT_PREFIX + name: ResolvedModel(AUTO, point.cost_weight) for name, point in points.items()}
        self.fixed = tuple(models)
        """All names that are no aliases."""
        targets = {name: models[target] for name, target in aliases.items() if target in models}
        self._patterns = [(name, target) for name, target in targets.items() if "*" in name]
        self._exact = {name: target for name, target in targets.items() if "*" not in name} | models

    @property
    def names(self) -> tuple[str, ...]:
        """All names, and the aliases that are patterns."""
        return (*self._exact, *(pattern for pattern, _ in self._patterns))

    def resolve(self, model: str) -> ResolvedModel | None:
        """Return the model that a value of `model` stands for; None if it is not known."""
        if (found := self._exact.get(model)) is not None or len(model) > MAX_MODEL_CHARACTERS:
            return found
        return next((target for pattern, target in self._patterns if matches(pattern, model)), None)


def matches(pattern: str, name: str) -> bool:
    """Return whether a name, or a pattern in which `*` stands for any characters, matches a name."""
    return fnmatchcase(name, pattern.replace("[", "[[]").replace("?", "[?]"))
