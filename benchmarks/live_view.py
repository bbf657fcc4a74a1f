"""Cost of the UI's live view under load, and loading time of the page.

    .venv/bin/python -m benchmarks.live_view [--rate 500] [--seconds 20] [--rounds 3] [--json FILE]

16 categories and 10 experts, all pairs in use. `gateway_percent`: of one core, what the worker needs more with one
page open than without, alternating, under load (its noise is that of the load) and idle (where the same
look is taken of the same counters). `page_percent`: of one core, the page's renderer, and all of the browser with it,
while the view is open. `ready_ms`: from asking for the page to its numbers, in a new browser context each time, idle
and under load. `weight_kb`: what the page's files weigh as they were sent, and one snapshot. Needs nginx, chromium and
the packages of the tests.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import psutil
from playwright.async_api import Browser, async_playwright

from benchmarks.harness import GATEWAY_PORT, ROOT, UPSTREAM_PORT, require, running, trained, upstream, worker_of
from coe.registry import yaml_source

URL = f"http://127.0.0.1:{GATEWAY_PORT}"
EXPERTS = [f"expert-{number}" for number in range(10)]
EXTRA = {"gardening": ["When do I prune roses?", "Soil for tomatoes"], "chess": ["Best answer to 1. e4", "Mate in two"]}
READY = """
new MutationObserver((_, observer) => {
  if (!document.querySelector(".figures")) return;
  globalThis.readyAt = performance.now();
  observer.disconnect();
}).observe(document, { childList: true, subtree: true });
"""
WEIGHT = """
[...performance.getEntriesByType("resource"), ...performance.getEntriesByType("navigation")]
  .filter(({ name }) => name.includes("/ui/")).reduce((total, { encodedBodySize }) => total + encodedBodySize, 0)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=500)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--home", type=Path, default=ROOT / ".coe", help="state folder with the trained router")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    require("nginx", "chromium")
    trained(options.home)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        stack.enter_context(upstream(folder))
        process = stack.enter_context(served(folder, options.home))
        report = asyncio.run(measured(worker_of(process), folder, options))
    print(json.dumps(report, indent=2))
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")


@contextmanager
def served(folder: Path, home: Path) -> Iterator[psutil.Process]:
    """A gateway with the shipped categories and two more, over ten experts that are one nginx."""
    categories = yaml_source.read(ROOT / "experts.yaml").value["categories"]
    categories += [{"name": name, "description": name, "examples": texts} for name, texts in EXTRA.items()]
    base = {"model": "m", "runtime": "external", "base_url": f"http://127.0.0.1:{UPSTREAM_PORT}/v1"}
    names = [category["name"] for category in categories]
    declared = {
        "version": 1,
        "categories": categories,
        "experts": [{"name": name, **base} for name in EXPERTS],
        "assignment": {name: EXPERTS[index % len(EXPERTS)] for index, name in enumerate(names)},
    }
    config = folder / "experts.yaml"
    config.write_text(json.dumps(declared))
    (folder / "experts.txt").write_text("\n".join(EXPERTS))
    state = folder / "state"
    shutil.copytree(home / "artifacts", state / "artifacts")
    env = os.environ | {"COE_HOME": str(state), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "coe.cli", "serve", "--config", str(config), "--port", str(GATEWAY_PORT)]
    with running(command, ready=f"{URL}/health/ready", env=env) as process:
        yield process


async def measured(worker: psutil.Process, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        with load(folder, options.rate):
            await asyncio.sleep(options.seconds)  # until every pair was met
            busy = [await gateway_cost(worker, options.seconds) for _ in range(options.rounds)]
            page = [await page_cost(browser, options.seconds) for _ in range(options.rounds)]
            ready = [await first_view(browser) for _ in range(5)]
        idle = [await gateway_cost(worker, options.seconds) for _ in range(options.rounds)]
        calm = [await first_view(browser) for _ in range(5)]
        await browser.close()
    event = await look()
    return {
        "rate": options.rate,
        "gateway_percent": {"load": spread(one[0] for one in busy), "added": spread(one[1] for one in busy)}
        | {"added_idle": spread(one[1] for one in idle)},
        "page_percent": {"renderer": spread(one[0] for one in page), "browser": spread(one[1] for one in page)},
        "ready_ms": {"idle": spread(one[0] for one in calm), "load": spread(one[0] for one in ready)},
        "weight_kb": {"page": round(calm[0][1] / 1000, 1), "event": round(len(event) / 1000, 1)},
        "pairs": sum(map(len, json.loads(event)["requests"]["flows"].values())),
    }


@contextmanager
def load(folder: Path, rate: float) -> Iterator[None]:
    command = [
        sys.executable,
        "-m",
        "benchmarks.constant_load",
        str(GATEWAY_PORT),
        str(rate),
        str(folder / "experts.txt"),
    ]
    process = subprocess.Popen(command, cwd=ROOT)
    try:
        yield
    finally:
        process.terminate()
        process.wait()


async def gateway_cost(worker: psutil.Process, seconds: float) -> tuple[float, float]:
    """Percent of a core without a listener, and how much more with one."""
    without = await used([worker], seconds)
    listener = asyncio.create_task(listen())
    await asyncio.sleep(1)
    with_one = await used([worker], seconds)
    listener.cancel()
    return without, with_one - without


async def listen() -> None:
    while True:
        await look()
        await asyncio.sleep(1)


async def look() -> bytes:
    async with aiohttp.ClientSession() as client, client.get(f"{URL}/v1/stats") as response:
        return await response.read()


async def page_cost(browser: Browser, seconds: float) -> tuple[float, float]:
    """Percent of a core: the page's renderer, and all processes of the browser."""
    context = await browser.new_context(viewport={"width": 1280, "height": 800})
    page = await context.new_page()
    await page.goto(f"{URL}/ui/#/live")
    await page.wait_for_selector(".figures")
    await asyncio.sleep(seconds)  # a minute's window fills, and the charts with it
    found = [process for process in psutil.Process().children(recursive=True) if "chrom" in process.name()]
    renderers = [process for process in found if "--type=renderer" in process.cmdline()]
    began = [spent(renderers), spent(found)]
    await asyncio.sleep(seconds)
    ended = [spent(renderers), spent(found)]
    await context.close()
    renderer, everything = (100 * (late - early) / seconds for early, late in zip(began, ended, strict=True))
    return renderer, everything


async def used(processes: list[psutil.Process], seconds: float) -> float:
    """Percent of a core over the next `seconds`."""
    began = spent(processes)
    await asyncio.sleep(seconds)
    return 100 * (spent(processes) - began) / seconds


def spent(processes: list[psutil.Process]) -> float:
    """Seconds of processor time."""
    times = [process.cpu_times() for process in processes]
    return float(sum(one.user + one.system for one in times))


async def first_view(browser: Browser) -> tuple[float, float]:
    """Milliseconds from requesting the page until its numbers are shown, and the bytes of its files."""
    context = await browser.new_context(viewport={"width": 1280, "height": 800})
    page = await context.new_page()
    await page.add_init_script(READY)
    await page.goto(f"{URL}/ui/#/live")
    await page.wait_for_function("globalThis.readyAt")
    found = await page.evaluate("globalThis.readyAt"), await page.evaluate(WEIGHT)
    await context.close()
    return float(found[0]), float(found[1])


def spread(values: Any) -> dict[str, float]:
    """The median and the largest."""
    known = list(values)
    return {"median": round(statistics.median(known), 2), "most": round(max(known), 2)}


if __name__ == "__main__":
    main()
