"""Memory of each process of a gateway, by the number of workers: what one more worker costs.

    .venv/bin/python -m benchmarks.worker_memory --home STATE [--checkout FOLDER] [--workers 1 2 4] [--languages]

STATE is a state folder with a router (trained there first where it has none). FOLDER is the checkout whose code serves.
After the start, wrk sends the English starter prompts for some seconds; with `--languages` it sends all of them, which
loads the multilingual encoder. Output, in MB, for the parent and each worker: `rss` counts shared pages in full, `pss`
divides them by the processes that share them, `private` (USS) counts the pages of one process alone. The sum of `pss`
is the memory of the gateway, and its growth that of one more worker.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil

from benchmarks.harness import (
    GATEWAY_PORT,
    ROOT,
    STARTER,
    UPSTREAM_PORT,
    gateway,
    load_script,
    require,
    trained,
    upstream,
    wrk,
)
from routers.cascade import load_cascade

FIELDS = {"rss": "rss", "pss": "pss", "private": "uss"}
"""Names of the output and of psutil."""


def measured(process: psutil.Process) -> list[dict[str, float]]:
    """MB of the parent and of each of its workers."""
    found = []
    for one in (process, *process.children()):
        memory = one.memory_full_info()
        found.append({name: round(getattr(memory, field) / 1e6, 1) for name, field in FIELDS.items()})
    return found


def prompts(folder: Path, router: Path, *, languages: bool) -> Path:
    """A file with the starter prompts; without `languages` those that no stage for other languages classifies."""
    rows = [json.loads(line) for line in STARTER.read_text(encoding="utf-8").splitlines() if line]
    fast_heads = load_cascade(router, threads=1).fast_heads
    chosen = [row for row in rows if languages or not fast_heads(row["prompt"]).foreign]
    file = folder / "prompts.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in chosen), encoding="utf-8")
    return file


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--checkout", type=Path, default=ROOT)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--seconds", type=int, default=6)
    parser.add_argument("--languages", action="store_true")
    options = parser.parse_args()
    require("nginx", "wrk", "redis-server")
    trained(options.home)
    store = options.home / "artifacts" / "router"
    router = store / (store / "current").read_text().strip()
    for workers in options.workers:
        with TemporaryDirectory() as name, upstream(Path(name)):
            folder = Path(name)
            script = load_script(folder, prompts(folder, router, languages=options.languages))
            url = f"http://127.0.0.1:{UPSTREAM_PORT}/v1"
            with gateway(
                folder, workers=workers, home=options.home, base_url=url, checkout=options.checkout.absolute()
            ) as (process, ready):
                started = measured(process)
                load = wrk(GATEWAY_PORT, script, connections=32, seconds=options.seconds)
                time.sleep(1)
                loaded = measured(process)
        row = {"workers": workers, "ready_s": round(ready, 2), "requests": round(load.rps * options.seconds)}
        print(json.dumps(row | {"failed": load.failed}))
        for when, state in (("start", started), ("after load", loaded)):
            print(f"  {when}: pss in all {sum(one['pss'] for one in state):.1f}", *map(json.dumps, state), sep="\n    ")


if __name__ == "__main__":
    main()
