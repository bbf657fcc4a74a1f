"""Routers of own categories with few examples, judged on real prompts; and categories found in undeclared traffic.

Each set of `training_sets.yaml` is trained as `coe train` does, from descriptions and 12 or 30 prompts a category that
are drawn from public routing data, and tested on other prompts of the same topics. Figures: macro recall of the own
categories, recall and precision of `general`, and what training itself reported. `suggest` declares all shipped
categories but three, and looks for these in 600 prompts.

Embeddings are kept in a folder of the temporary directory, so that a later run takes seconds a router.
"""

from __future__ import annotations

import fnmatch
import pickle
import tempfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from ruamel.yaml import YAML

import routers
from benchmarks.harness import ROOT
from coe.artifacts.store import ArtifactStore
from coe.core import GENERAL
from coe.learning.support import with_support
from coe.measuring.benchmark import SharedEncoder
from coe.registry import load
from coe.reports.novelty import propose_categories
from coe.reports.training import macro_recall
from routers.cascade import NETWORK


def _read(name: str) -> Any:
    return YAML(typ="safe").load(Path(__file__).with_name(name).read_text())


SETS: Mapping[str, Mapping[str, Any]] = _read("training_sets.yaml")
FRESH = ("speaker", "fintech", "school")
"""Sets that no rule was chosen on."""
WRITTEN = ("shop", "clinic", "office", *FRESH)
"""Sets with examples that we wrote; those of the others are drawn from the data."""
PROMPTS: Mapping[str, Sequence[str]] = _read("training_prompts.yaml")
UNDECLARED: Mapping[str, Sequence[str]] = {
    "law": ("mmlu/professional_law", "mmlu/jurisprudence", "mmlu_pro/law", "legalbench/*"),
    "medicine": ("pubmedqa/*", "mmlu/clinical*", "mmlu/college_medicine", "mmlu_pro/health"),
    "everyday": ("clinc150/home/*", "clinc150/kitchen*", "clinc150/travel/*", "clinc150/banking/*"),
}
DECLARED = (
    ("llmrouter/mbpp", "arena_hard_v2/coding"),
    ("llmrouter/math", "llmrouter/gsm8k"),
    ("mmlu/*physics", "mmlu/*chemistry", "llmrouter/arc*"),
    ("mmlu_pro/business", "mmlu/*accounting", "mmlu/marketing"),
    ("mmlu/philosophy", "mmlu/prehistory", "mmlu/world_religions"),
    ("mmlu/*psychology", "mmlu/sociology"),
    ("arena_hard_v2/creative_writing",),
    ("clinc150/small_talk/*",),
    ("bbh/*",),
)
"""The kinds of the 600 prompts of `suggest`, 50 of each."""
OTHER_TOPICS = ("clinc150/oos", "clinc150/small_talk/*", "clinc150/utility/[cdmrsw]*")
"""Prompts of `general`: no set declares these topics."""
EXAMPLES, TESTED = (12, 30), 60
CACHE = Path(tempfile.gettempdir()) / "coe-user-loop"


@contextmanager
def cached_encoder() -> Iterator[SharedEncoder]:
    """The default encoder, exported once, with the embeddings of earlier runs."""
    if not (CACHE / NETWORK).is_file():
        routers.export_encoder(routers.DEFAULT_ENCODER, out=CACHE)
    encoder, file = SharedEncoder(CACHE), CACHE / "embeddings.pickle"
    encoder.memory = pickle.loads(file.read_bytes()) if file.is_file() else {}
    known = len(encoder.memory)
    with (
        mock.patch("routers.training.build.is_installed", return_value=False),  # the prompts are English
        mock.patch("routers.training.build.IS_AVAILABLE", False),
    ):
        yield encoder
    if len(encoder.memory) > known:
        file.write_bytes(pickle.dumps(encoder.memory))


def public_prompts(data: Path) -> list[tuple[str, str]]:
    """(source/label, prompt) pairs, English."""
    import pyarrow.parquet as pq

    rows = pq.read_table(data / "category" / "train.parquet").to_pylist()
    return [(f"{row['source']}/{row['label']}", row["prompt"]) for row in rows if row["lang"] == "en"]


def split(name: str, rows: Sequence[tuple[str, str]], seed: int) -> dict[str, tuple[list[str], list[str]]]:
    """By category of the set: prompts to declare, and others to test."""
    random, used, parts = np.random.default_rng([seed, zlib.crc32(name.encode())]), set[str](), {}
    wanted = {category: declared["prompts"] for category, declared in SETS[name].items()} | {GENERAL: OTHER_TOPICS}
    for category, patterns in wanted.items():
        own = {text for label, text in rows if any(fnmatch.fnmatch(label, pattern) for pattern in patterns)}
        prompts = sorted(own - used)
        used |= own
        random.shuffle(prompts)
        given = 0 if category == GENERAL else max(EXAMPLES)
        own_examples = list(PROMPTS.get(category, ())) if name in WRITTEN else prompts[:given]
        random.shuffle(own_examples)
        parts[category] = own_examples, prompts[given : given + (TESTED if given else 2 * TESTED)]
    return parts


def train_and_test(
    name: str, rows: Sequence[tuple[str, str]], *, given: int, seed: int, encoder: Any
) -> dict[str, Any]:
    """Train on `given` prompts a category; return the figures."""
    parts = split(name, rows, seed)
    pairs = [(one.prompt, GENERAL) for one in routers.starter_examples() if one.category == GENERAL]
    pairs += [(text, category) for category, (own, _) in parts.items() for text in own[:given]]
    with tempfile.TemporaryDirectory() as folder:
        examples = [routers.Example(*pair) for pair in pairs]
        described = {category: declared["description"] for category, declared in SETS[name].items()}
        support = partial(with_support, descriptions=described)
        metrics = routers.build(examples, support=support, encoder=encoder.write, out=Path(folder))
        router: Any = routers.load(Path(folder))
    router.encoder = encoder
    routed = {c: [router.categories[one.best] for one in router.predict(tested)] for c, (_, tested) in parts.items()}
    recall = {category: float(np.mean([one == category for one in found])) for category, found in routed.items()}
    own = [value for category, value in recall.items() if category != GENERAL]
    as_general = sum(found.count(GENERAL) for found in routed.values())
    return {
        "macro": float(np.mean(own)),
        "lowest": min(own),
        "general": recall[GENERAL],
        "precision": routed[GENERAL].count(GENERAL) / max(1, as_general),
        "reported": macro_recall(metrics["confusion"])[0],
        "escalated": metrics["escalated"],
    }


def run(data: Path, home: Path, *, seeds: int) -> None:
    """Print the figures of every set, and the proposals."""
    rows = public_prompts(data)
    suggest(rows, home)
    with cached_encoder() as encoder:
        for given in EXAMPLES:
            print(f"{given} examples: macro lowest general precision reported escalated")
            means = []
            for name in SETS:
                runs = [train_and_test(name, rows, given=given, seed=seed, encoder=encoder) for seed in range(seeds)]
                means.append(np.mean([list(one.values()) for one in runs], axis=0))
                print(f"  {name:12}", *(f"{value:.3f}" for value in means[-1]), flush=True)
            print(f"  {'mean':12}", *(f"{value:.3f}" for value in np.mean(means, axis=0)), flush=True)


def suggest(rows: Sequence[tuple[str, str]], home: Path) -> None:
    """Print what is proposed for 600 prompts by the router in use under `home`, with three categories undeclared."""
    artifact = ArtifactStore(home / "artifacts", "router").current()
    assert artifact is not None, f"no router is in use under {home}"
    shipped = load(ROOT / "experts.yaml", environ={})
    kept = tuple(category for category in shipped.categories if category.name not in UNDECLARED)
    random, kind_of = np.random.default_rng(0), dict[str, str]()
    for name, patterns in [*UNDECLARED.items(), *(("declared", patterns) for patterns in DECLARED)]:
        own = sorted({text for label, text in rows if any(fnmatch.fnmatch(label, pattern) for pattern in patterns)})
        kind_of |= dict.fromkeys((str(text) for text in random.permutation(own)[:50]), name)
    declared = type(shipped).model_construct(**{**dict(shipped), "categories": kept})  # a copy would keep cached names
    unexplained, found = propose_categories(declared, artifact, list(kind_of))
    print(f"suggest: {unexplained} of {len(kind_of)} prompts unexplained")
    for one in found:
        print(f"  {one.name}: {one.prompts} prompts, terms {', '.join(one.terms)}")
