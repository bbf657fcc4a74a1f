"""Throughput on prompts that the router has never seen, against the prompts that it was trained on, in pairs.

    .venv/bin/python -m benchmarks.fresh_prompts --data DIR/category --home STATE [--workers 2] [--pairs 6]
        [--seconds 3] [--connections 32] [--checkout NAME=FOLDER:STATE ...]

DIR/category holds train.parquet as for benchmarks/category.py, of which up to EACH English prompts a category are sent:
more than a gateway keeps encoder results for. Some 30 % of them need an encoder pass, or are answered by the fast heads
alone where load shedding skips it. The stages come from the routing log. With `--checkout`, other states are loaded in
turn with this one, and ratios are to this one.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from statistics import median, quantiles

import psutil

from benchmarks.category import LEFT_OUT, read, sample
from benchmarks.harness import (
    GATEWAY_PORT,
    ROOT,
    STARTER,
    UPSTREAM_PORT,
    gateway,
    load_script,
    record_counts,
    require,
    upstream,
    wrk,
)
from benchmarks.side_by_side import burst, checkout

EACH = 1000
FRESH, LEARNED = "fresh", "learned"
OWN = "this"


def main() -> None:
    options = _options()
    require("nginx", "wrk")
    states = [(OWN, ROOT, options.home.resolve()), *options.checkout]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        stack.enter_context(upstream(folder))
        scripts = {FRESH: load_script(folder, _fresh(options.data, folder))}
        (folder / LEARNED).mkdir()
        scripts[LEARNED] = load_script(folder / LEARNED, STARTER)
        servers = dict[str, tuple[int, psutil.Process]]()
        for number, (name, code, home) in enumerate(states):
            (folder / name).mkdir()
            port = GATEWAY_PORT + 20 + number
            served = gateway(
                folder / name,
                workers=options.workers,
                home=home,
                base_url=f"http://127.0.0.1:{UPSTREAM_PORT}/v1",
                port=port,
                checkout=code,
            )
            servers[name] = (port, stack.enter_context(served)[0])
            for script in scripts.values():
                wrk(port, script, connections=8, seconds=2)  # warm up
        found = {(name, kind): list[dict[str, float]]() for name in servers for kind in scripts}
        stages = {key: Counter[str]() for key in found}
        load = {"connections": options.connections, "seconds": options.seconds}
        for _ in range(options.pairs):
            for (name, kind), bursts in found.items():
                before = record_counts(folder / name, "stage")
                bursts.append(burst(*servers[name], scripts[kind], **load))
                stages[name, kind] += record_counts(folder / name, "stage") - before
    _report(found, stages)


def _report(found: dict[tuple[str, str], list[dict[str, float]]], stages: dict[tuple[str, str], Counter[str]]) -> None:
    for (name, kind), bursts in found.items():
        figures = ", ".join(f"{figure} {median(one[figure] for one in bursts):.4g}" for figure in bursts[0])
        total = max(1, stages[name, kind].total())
        shares = ", ".join(
            f"{stage or 'none'} {count / total:.3f}" for stage, count in sorted(stages[name, kind].items())
        )
        print(f"{name:10} {kind:8} {figures}; stages: {shares}")
    for name in dict.fromkeys(name for name, _ in found):
        for label, other in ((f"fresh/learned of {name}", (name, LEARNED)), (f"fresh of {name}/{OWN}", (OWN, FRESH))):
            if other == (name, FRESH):
                continue
            pairs = zip(found[name, FRESH], found[other], strict=True)
            low, middle, high = quantiles([one["rps"] / two["rps"] for one, two in pairs], n=4)
            print(f"{label:28} requests a second {middle:.3f} (quartiles {low:.3f} to {high:.3f})")


def _fresh(data: Path, folder: Path) -> Path:
    """Write a sample of the English public prompts as JSONL."""
    rows = [row for row in read(data / "train.parquet") if row["category"] not in LEFT_OUT and row["lang"] == "en"]
    prompts = folder / "fresh.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": row["prompt"]}) + "\n" for row in sample(rows, each=EACH)))
    return prompts


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--home", type=Path, default=ROOT / ".coe", help="state folder with the trained router")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=6)
    parser.add_argument("--seconds", type=int, default=3)
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--checkout", type=checkout, action="append", default=[], metavar="NAME=FOLDER:STATE")
    return parser.parse_args()


if __name__ == "__main__":
    main()
