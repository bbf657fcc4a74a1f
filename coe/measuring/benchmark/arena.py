"""RouterArena's score of quality and cost, and the robustness of routing decisions to perturbed prompts.

The score is that of RouterArena (Lu et al. 2025, arXiv 2510.00202): a weighted harmonic mean of quality and of cost on
a logarithmic scale. RouterArena's scale is in the dollars of its models; here it reaches from the cheapest to the
dearest model of the pool, so scores of different pools are not comparable.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

PRICES = (0.0, *(float(price) for price in np.geomspace(1e-4, 1.0, 33)))
"""Prices that the frontier and the choice by score try, in quality per billion active parameters."""
COST_WEIGHT = 0.1
"""Weight of cost in the harmonic mean (beta in the paper); that of quality is 1."""

Floats = NDArray[np.floating]


def arena_score(quality: float, cost: float, *, costs: Floats) -> float:
    """Return the score (0 to 1) of a mean quality (0 to 1) at a mean cost; `costs` (n_models,) are those of the pool.

    With models of one cost, the score is the quality.
    """
    low, high = float(np.log2(costs.min())), float(np.log2(costs.max()))
    saved = float(np.clip((high - np.log2(cost)) / (high - low), 0.0, 1.0)) if high > low else 1.0
    total = COST_WEIGHT * quality + saved
    return (1.0 + COST_WEIGHT) * quality * saved / total if total else 0.0


def arena_choice(value: Floats, costs: Floats) -> NDArray[np.int64]:
    """Return the model chosen for each prompt (n_prompts,) at the price that maximizes the expected arena score.

    `value` (n_prompts, n_models) are predicted qualities. The measured scores are not used, so this is not an oracle.
    """
    prompts, best, chosen = np.arange(len(value)), -1.0, value.argmax(axis=1)
    for price in PRICES:
        choice = (value - price * costs).argmax(axis=1)
        expected = arena_score(float(value[prompts, choice].mean()), float(costs[choice].mean()), costs=costs)
        if expected > best:
            best, chosen = expected, choice
    return np.asarray(chosen)


# ----------------------------------------------------------------------------------------------- robustness

_CHATTER = (
    "Hi there! Hope you're having a good day. I have a quick one for you:\n\n",
    "hey, sorry to bother you again, one more thing please. ",
    "Thanks, that was very helpful! Next: ",
    "Good morning. My colleague and I could not agree on this, so I thought I would ask.\n\n",
)
_REWORDED = (
    (r"^what (is|are|was|were)\b", r"could you tell me what \1"),
    (r"^which of the following\b", "which one of these"),
    (r"^which\b", "can you say which"),
    (r"^how (do|does|can|should|many|much|to)\b", r"I would like to know how \1"),
    (r"^why\b", "what is the reason why"),
    (r"^(calculate|compute|determine|find)\b", "work out"),
    (r"^(write|create|generate)\b", "please come up with"),
    (r"^(explain|describe)\b", "give me an account of"),
)


def _with_typos(prompt: str, rng: random.Random) -> str:
    """Swap two letters in one word of ten, at least in one."""
    words = re.split(r"(\s+)", prompt)
    long = [number for number, word in enumerate(words) if len(word) > 3 and word.isalpha()]
    for number in rng.sample(long, k=min(len(long), max(1, len(long) // 10))):
        word, at = words[number], rng.randrange(1, len(words[number]) - 1)
        words[number] = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    return "".join(words)


def _change_case(prompt: str, rng: random.Random) -> str:
    return prompt.lower() if rng.random() < 0.5 else prompt.upper()


def _reworded(prompt: str, rng: random.Random) -> str:
    """Word the beginning of a question or an instruction otherwise, or introduce the prompt."""
    for pattern, replacement in _REWORDED:
        found, count = re.subn(pattern, replacement, prompt, count=1, flags=re.IGNORECASE)
        if count:
            return found
    return f"My question is this. {prompt}"


def _with_chatter(prompt: str, rng: random.Random) -> str:
    return rng.choice(_CHATTER) + prompt


PERTURBATIONS: Mapping[str, Callable[[str, random.Random], str]] = {
    "typos": _with_typos,
    "case": _change_case,
    "rewording": _reworded,
    "chatter": _with_chatter,
}


def staying(decide: Callable[[Sequence[str]], NDArray[np.int64]], prompts: Sequence[str]) -> dict[str, list[bool]]:
    """Return by perturbation whether the decision on each prompt stays; `decide` maps prompts to models by index."""
    before, found = decide(prompts), {}
    for name, perturb in PERTURBATIONS.items():
        rng = random.Random(0)  # noqa: S311 (no secret depends on it)
        found[name] = (decide([perturb(prompt, rng) for prompt in prompts]) == before).tolist()
    return found
