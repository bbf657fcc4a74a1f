"""The model of the section `recipes` of experts.yaml: a recipe combines several experts and answers like one expert.

A recipe calls several experts, its members, and returns the answer of one of them. Its steps run one after another; the
members of one step are called at the same time. `coe.registry.specs.ArmSpec` is the form of a recipe in a plan, and
`coe.experts.recipes` executes recipes.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from coe.registry.sections import ArmName, Name, Probability, StrictModel

RECIPE_LEVELS = 3
"""Arms of a recipe with several steps. Level 1 stops earliest, so it is the cheapest."""
PROPOSED_PREFIX = "auto-"
"""Beginning of the names of recipes that `coe plan` proposes; a number follows."""
AUTO_RECIPES = "auto"
"""Item of `recipes` with which `coe plan` proposes cascades and votes."""


def _members(step: Any) -> Any:
    """Convert one name to a step of one member. Rejects an empty step."""
    if step in ([], ""):
        raise PydanticCustomError("empty_step", "a step calls at least one expert; name one, or remove the step")
    return [step] if isinstance(step, str) else step


Step = Annotated[tuple[ArmName, ...], BeforeValidator(_members, json_schema_input_type=ArmName | tuple[ArmName, ...])]
"""Members that are called at the same time; in the file a name or a list of names."""


class RecipeSpec(StrictModel):
    """A recipe: an ordered list of experts to call, and when to stop. It answers like an expert. Give it either
    `cascade` or `vote`."""

    name: Name
    """Name of the recipe. A client that sends it as `model` pins this recipe."""
    cascade: tuple[Step, ...] = ()
    """Steps, usually from cheap to expensive. A step is an expert, or a list of experts that are called at the same
    time. The next step is called only if the answers so far are not reliable enough."""
    vote: tuple[ArmName, ...] = ()
    """Experts of equal rank, whose most supported answer is returned."""
    ask: Literal["all", "until_agreed"] = "all"
    """Of a vote: call all experts at the same time, or one after another until their answers agree."""
    signal: Literal["agreement"] = "agreement"
    """The signal that an answer is reliable: agreement of the members' final answers."""
    max_loss: Probability | None = None
    """Largest loss of quality (0 to 1) from not calling the later steps. `coe plan` uses the recipe only if calibration
    probes show with 95 % confidence that the loss is smaller."""

    @property
    def steps(self) -> tuple[tuple[str, ...], ...]:
        """The members of each step, in the order of the calls."""
        if self.cascade:
            return self.cascade
        return (self.vote,) if self.ask == "all" else tuple((member,) for member in self.vote)

    @property
    def members(self) -> tuple[str, ...]:
        """The names of all members, in the order of the calls."""
        return tuple(name for step in self.steps for name in step)

    @property
    def levels(self) -> int:
        """The number of arms: a recipe of one step cannot stop early."""
        return RECIPE_LEVELS if len(self.steps) > 1 else 1

    def arm(self, level: int) -> str:
        """The name of the arm of a level, from 1."""
        return f"{self.name}@{level}"


def _item(item: Any) -> Any:
    """Convert the item `auto` to None, which the type of an item allows for it alone."""
    if not isinstance(item, dict | RecipeSpec) and item != AUTO_RECIPES:
        raise PydanticCustomError("recipe", "expected a recipe or the word auto")
    return None if item == AUTO_RECIPES else item


def _items(items: Any) -> Any:
    return [AUTO_RECIPES] if items == AUTO_RECIPES else items


_Listed = RecipeSpec | Literal["auto"]
RecipeItem = Annotated[RecipeSpec | None, BeforeValidator(_item, json_schema_input_type=_Listed)]
"""A declared recipe; None for the word `auto`."""
RecipeItems = Annotated[
    tuple[RecipeItem, ...],
    BeforeValidator(_items, json_schema_input_type=Literal["auto"] | Annotated[tuple[_Listed, ...], Field()]),
]
