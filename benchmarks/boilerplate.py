"""Accuracy of routing with the boilerplate of agents and clients around a prompt, against the prompt alone.

    python -m benchmarks.boilerplate --router FOLDER [--data DIR/category]

Each prompt of boilerplate_prompts.jsonl is wrapped by each of boilerplate_wrappers.yaml and classified. A third of the
prompts, chosen by their digest, is the test part; rules were written with the others in view. With --data, public
prompts of one line are a third part, "public", which neither the rules nor the router have seen.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

import routers
from benchmarks.boilerplate_wrappers import CASES, SHORT_REQUESTS, WRAPPERS, Messages, Wrapper, user
from benchmarks.category import plain_category, sample
from coe.core import Chat, Message, Router
from coe.routing.request_text import routing_text

PUBLIC_EACH, MAX_PUBLIC_CHARACTERS = 60, 160
PROMPTS = Path(__file__).with_name("boilerplate_prompts.jsonl")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--router", type=Path, required=True)
    parser.add_argument("--data", type=Path)
    options = parser.parse_args()
    report = boilerplate(routers.load(options.router), public_prompts(options.data) if options.data else [])
    print(json.dumps(report, indent=1))


def boilerplate(router: Router, public: Sequence[dict[str, str]] = ()) -> dict[str, Any]:
    """Accuracies by part of the prompts and wrapper, and the single cases."""
    rows = [json.loads(line) for line in PROMPTS.read_text(encoding="utf-8").splitlines()]
    parts = {
        "development": [row for row in rows if not is_test(row["prompt"])],
        "test": [row for row in rows if is_test(row["prompt"])],
    }
    if public:
        parts["public"] = list(public)
    report: dict[str, Any] = {name: _accuracies(router, part) for name, part in parts.items()}
    short = [WRAPPERS["opencode"](request) for request in SHORT_REQUESTS]
    report["short_requests_to_code"] = _categories(router, short).count("code")
    routed = _categories(router, [messages for _, _, messages in CASES])
    report["cases"] = {
        name: {"wanted": wanted, "routed": found} for (name, wanted, _), found in zip(CASES, routed, strict=True)
    }
    return report


def public_prompts(folder: Path) -> list[dict[str, str]]:
    """Public prompts of one line, PUBLIC_EACH of every category."""
    rows = [
        {"category": category, "prompt": row["prompt"]}
        for row in pq.read_table(folder / "train.parquet", columns=["prompt", "category", "label"]).to_pylist()
        if len(row["prompt"]) <= MAX_PUBLIC_CHARACTERS and "\n" not in row["prompt"]
        if (category := plain_category(row))
    ]
    return sample(rows, each=PUBLIC_EACH)


def is_test(prompt: str) -> bool:
    """True for a third of the prompts."""
    return hashlib.sha256(prompt.encode()).digest()[0] % 3 == 0


def chat_of(messages: Messages) -> Chat:
    turns = tuple(Message(message["role"], message["content"]) for message in messages)
    length = sum(len(turn.text) for turn in turns)
    return Chat("auto", turns, stream=False, needs=frozenset(), characters=length, fields={})


def _accuracies(router: Router, rows: Sequence[dict[str, str]]) -> dict[str, Any]:
    wrapped = {name: _accuracy(router, rows, wrap) for name, wrap in WRAPPERS.items()}
    plain, mean = _accuracy(router, rows, lambda prompt: [user(prompt)]), sum(wrapped.values()) / len(wrapped)
    return {"prompts": len(rows), "plain": plain, "wrappers": wrapped, "wrapped": round(mean, 3)}


def _accuracy(router: Router, rows: Sequence[dict[str, str]], wrap: Wrapper) -> float:
    found = _categories(router, [wrap(row["prompt"]) for row in rows])
    right = sum(category == row["category"] for category, row in zip(found, rows, strict=True))
    return round(right / len(rows), 3)


def _categories(router: Router, chats: Sequence[Messages]) -> list[str]:
    texts = [routing_text(chat_of(messages)) for messages in chats]
    return [router.categories[prediction.best] for prediction in router.predict(texts)]


if __name__ == "__main__":
    main()
