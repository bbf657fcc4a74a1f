"""The model of the section `recipes` of experts.yaml: a recipe combines several experts and answers like one expert.

A recipe calls several experts, its members, and returns the answer of one of them. Its steps run one after another; the
members of one step are called at the same time. A cascade or vote compares the answers of its members. A chain or fuse
writes: the answers of a step are part of the request of the next one. `ArmSpec` is the form of a recipe in a plan, and
`coe.recipes` executes recipes.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from coe.core import Api, Capability
from coe.registry.experts import ExpertSpec, Prices
from coe.registry.sections import Name, Probability, StrictModel, one_as_list

PROPOSED_PREFIX = "auto-"
"""Beginning of the names of recipes that `coe plan` proposes; a number follows."""
AUTO_RECIPES = "auto"
"""Item of `recipes` with which `coe plan` proposes cascades and votes."""
MAX_INSTRUCTION_CHARACTERS = 4000
MIN_JUDGE_CONTEXT = 4200
"""Tokens of the longest request for a grade, 16,000 characters of conversation and answer, in most languages."""
CHAIN_INSTRUCTION = """\
Check the draft: is it correct, and does it do all that the request asks? Correct what is wrong and add what is missing.
Then answer the request yourself. Return the improved final answer only; do not mention the draft."""
FUSE_INSTRUCTION = """\
Compare the answers: where they disagree, find out which is right; all of them may be wrong. Then answer the request
yourself with the best of them. Return the final answer only; do not mention the other answers."""


_OneOrMore = BeforeValidator(one_as_list, json_schema_input_type=Name | tuple[Name, ...])
Step = Annotated[tuple[Name, ...], Field(min_length=1), _OneOrMore]
"""Members that are called at the same time; in the file a name or a list of names."""


class RecipeSpec(StrictModel):
    """A recipe: experts to call in steps. It answers like an expert. Give it one of `cascade`, `vote`, `chain` and
    `fuse`."""

    name: Name
    """Name of the recipe. A client that sends it as `model` pins this recipe."""
    cascade: tuple[Step, ...] = ()
    """Steps, usually from cheap to expensive. A step is an expert, or a list of experts that are called at the same
    time. The next step is called only if the answers so far are not reliable enough."""
    vote: tuple[Name, ...] = ()
    """Experts of equal rank, whose most supported answer is returned."""
    ask: Literal["all", "until_agreed"] = "all"
    """For a vote: call all experts at the same time, or one after another until their answers agree."""
    chain: tuple[Name, ...] = ()
    """Experts that are called one after another. Each further one gets the request with the draft of the one before and
    returns an improved answer. The last answer is returned. An expert may occur twice, to revise its own draft."""
    fuse: tuple[Name, ...] = ()
    """Experts that answer at the same time. The expert `by` gets the request with their answers and writes the answer
    that is returned."""
    by: Name | None = None
    """For a fuse: the expert that writes the answer. It may be one of those that answer first."""
    instruction: Annotated[str, Field(pattern=r"\S", max_length=MAX_INSTRUCTION_CHARACTERS)] | None = None
    """For a chain or fuse: what to do with the earlier answers, which precede this text in the request. Default: check
    them, and return the improved final answer only."""
    signal: Literal["agreement", "judge"] = "agreement"
    """The signal that an answer is reliable: agreement of the members' final answers, or, in a cascade, also the grade
    that a judge gives to the best answer after each step but the last."""
    judge: Name | None = None
    """With `signal: judge`: the expert that grades. It is not a member."""
    max_loss: Probability | None = None
    """Largest loss of quality (0 to 1) from not calling the later steps. `coe plan` uses the recipe only if calibration
    probes show with 95 % confidence that the loss is smaller."""

    @property
    def steps(self) -> tuple[tuple[str, ...], ...]:
        """The members of each step, in the order of the calls."""
        if self.cascade:
            return self.cascade
        if self.writes:
            writer = () if self.by is None else ((self.by,),)
            return tuple((member,) for member in self.chain) or (self.fuse, *writer)
        return (self.vote,) if self.ask == "all" else tuple((member,) for member in self.vote)

    @property
    def members(self) -> tuple[str, ...]:
        """The names of all members, in the order of the calls."""
        return tuple(name for step in self.steps for name in step)

    @property
    def judgements(self) -> int:
        """The largest number of calls to the judge."""
        return 0 if self.judge is None else len(self.steps) - 1

    @property
    def graded_members(self) -> tuple[str, ...]:
        """The members whose answers a judge may grade: those of all steps but the last."""
        return () if self.judge is None else tuple(name for step in self.steps[:-1] for name in step)

    @property
    def called(self) -> tuple[str, ...]:
        """The names of all experts that are called at most, once for each call: the members, then the judge."""
        return self.members if self.judge is None else (*self.members, *(self.judge,) * self.judgements)

    @property
    def writes(self) -> bool:
        """True for a chain or fuse, whose last step writes the answer."""
        return bool(self.chain or self.fuse)

    @property
    def written_instruction(self) -> str:
        """The instruction that a later step of a chain or fuse gets with the earlier answers."""
        return self.instruction or (CHAIN_INSTRUCTION if self.chain else FUSE_INSTRUCTION)

    @property
    def writing_digest(self) -> str:
        """Digest of the kind (chain or fuse) and the instruction; empty for cascades and votes. Measured answers are
        valid only for the same digest."""
        if not self.writes:
            return ""
        text = f"{'chain' if self.chain else 'fuse'}\n{self.written_instruction}"
        return hashlib.sha256(text.encode()).hexdigest()[:12]


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


DRAFTS_CONTEXT_SHARE = 0.25
"""Share of the context that a member of a chain or fuse keeps for the answers of earlier steps."""


@dataclass(frozen=True, slots=True, eq=False)
class ArmSpec:
    """The arm of a recipe: what the plan selects and routing calls, like an expert. It has the name of the recipe.

    `steps` are the names of the members of each step, `members` their declarations in the order of the calls.
    `writing_digest` is `RecipeSpec.writing_digest`, `judge` the name of the judge, empty without one, and `judge_spec`
    its declaration.
    """

    name: str
    steps: tuple[tuple[str, ...], ...]
    members: tuple[ExpertSpec, ...]
    writing_digest: str = ""
    judge: str = ""
    judge_spec: ExpertSpec | None = None
    stand_in: None = None
    supported_apis: frozenset[Api] = frozenset({"chat"})

    prices: Prices = Prices()  # noqa: RUF009  (immutable)
    """Nothing: each call costs its member's own prices."""

    @property
    def called(self) -> tuple[ExpertSpec, ...]:
        """The declarations of all experts that receive the request: the members and the judge."""
        return self.members if self.judge_spec is None else (*self.members, self.judge_spec)

    @property
    def capabilities(self) -> frozenset[Capability]:
        """Capabilities that all members have. Audio and tools are left to single experts."""
        return frozenset.intersection(*(member.capabilities for member in self.members)) - {"audio", "tools"}

    @property
    def languages(self) -> frozenset[str] | None:
        """Languages that all members have; None for all languages."""
        declared = [member.languages for member in self.members if member.languages is not None]
        return frozenset.intersection(*declared) if declared else None

    @property
    def context_length(self) -> int:
        """Smallest context of the members; those that get earlier answers keep DRAFTS_CONTEXT_SHARE for them."""
        if self.writing_digest:
            first = len(self.steps[0])
            kept = [int(one.context_length * (1 - DRAFTS_CONTEXT_SHARE)) for one in self.members[first:]]
            return min(*(one.context_length for one in self.members[:first]), *kept)
        return min(member.context_length for member in self.members)
