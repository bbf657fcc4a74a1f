"""Common parts of the gateway's benchmarks: a static upstream (nginx), load (wrk), the gateway and its memory."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from random import Random
from urllib.parse import urlsplit

import psutil

ROOT = Path(__file__).parent.parent
STARTER = ROOT / "routers" / "starter" / "prompts.jsonl"
UPSTREAM_PORT, GATEWAY_PORT, PASSTHROUGH_PORT, REDIS_PORT = 18090, 18091, 18095, 18097
UPSTREAM = f"http://127.0.0.1:{UPSTREAM_PORT}"
KEY = "sk-benchmark-0123456789abcdef"
ANSWER = json.dumps(
    {
        "id": "x",
        "object": "chat.completion",
        "created": 0,
        "model": "m",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "ok"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 9, "completion_tokens": 1, "total_tokens": 10},
    }
)
ACCESS = f"""access:
  keys:
    - name: benchmark
      sha256: {hashlib.sha256(KEY.encode()).hexdigest()}
      limits: {{requests_per_minute: 1000000000, tokens_per_minute: 1000000000000, concurrent_requests: 100000}}
"""
CLOSE = '"}]}'
"""The end of each chat, after the prompt."""
BITS, PASSES, LENGTHS = 20, 2**8 + 5, 2**8
"""White space after a prompt makes it differ in every pass over the prompts: the number of the pass in BITS characters,
then 0 to LENGTHS - 1 blanks. A run has at most PASSES passes, and begins five lengths after the one before. The gateway
would record a repeated conversation of the same length as a regenerated answer, which real traffic has rarely."""
_runs = count()
FAILURES = ("connect", "read", "write", "status", "timeout")
"""Failures that wrk counts: socket errors, a status of 400 or more, and timeouts after two seconds."""
LUA = """
local bodies = {{}}
for line in io.lines("{bodies}") do bodies[#bodies + 1] = line:sub(1, -{tail} - 1) end
local at, pass, blanks = 0, 0, ""
function init(arguments)
  pass = tonumber(arguments[1]) * {passes}
end
wrk.method = "POST"
wrk.headers["content-type"] = "application/json"
wrk.headers["authorization"] = "Bearer {key}"
request = function()
  if at % #bodies == 0 then
    at, pass, blanks = 0, pass + 1, ""
    for bit = 0, {bits} - 1 do blanks = blanks .. (math.floor(pass / 2 ^ bit) % 2 == 0 and " " or "\\\\t") end
    blanks = blanks .. string.rep(" ", pass % {lengths})
  end
  at = at + 1
  return wrk.format(nil, "/v1/chat/completions", nil, bodies[at] .. blanks .. '{close}')
end
done = function(summary, latency)
  local bad = summary.errors
  print(string.format("RESULT %f %f %f %d %d %d %d %d", latency:percentile(50) / 1000, latency:percentile(99) / 1000,
    summary.requests / summary.duration * 1e6, bad.connect, bad.read, bad.write, bad.status, bad.timeout))
end
"""


@dataclass(frozen=True, slots=True)
class Load:
    """One run of wrk: percentiles in ms, requests per second, and how many requests failed in which way.

    The percentiles are those of requests that come at an even pace: wrk counts a late answer also for those that it
    held up (coordinated omission).
    """

    p50: float
    p99: float
    rps: float
    failures: Mapping[str, int]

    @property
    def failed(self) -> int:
        return sum(self.failures.values())


def require(*commands: str) -> None:
    for command in commands:
        if shutil.which(command) is None:
            sys.exit(f"{command} is not on PATH; on Debian: apt-get install nginx-light wrk redis-server")


def head(length: int, key: str = KEY) -> bytes:
    """Return the head of a request of `key` whose body has `length` bytes."""
    lines = (
        "POST /v1/chat/completions HTTP/1.1",
        "host: localhost",
        "content-type: application/json",
        f"authorization: Bearer {key}",
        f"content-length: {length}",
    )
    return "".join(f"{line}\r\n" for line in (*lines, "")).encode()


def chats(prompts: Sequence[str], *, turns: int = 1) -> list[bytes]:
    """Return one chat for each prompt, which is the newest of so many turns of the user; the others are those before
    it. It ends with CLOSE."""
    answer = {"role": "assistant", "content": "Here is what you asked for, in a few words."}
    bodies = []
    for index in range(len(prompts)):
        said = [prompts[index - back] for back in reversed(range(turns))]
        messages = [part for text in said for part in ({"role": "user", "content": text}, answer)][:-1]
        bodies.append(json.dumps({"model": "auto", "messages": messages}).encode())
    return bodies


def read_prompts(file: Path) -> list[str]:
    """Return the field `prompt` of a JSONL file, in a fixed random order."""
    texts = [json.loads(line)["prompt"] for line in file.read_text(encoding="utf-8").splitlines() if line]
    Random(0).shuffle(texts)
    return texts


def load_script(folder: Path, bodies: Sequence[bytes], name: str = "load") -> Path:
    """Write a script for wrk that sends the `bodies` in turn, and no conversation twice."""
    file, script = folder / f"{name}.jsonl", folder / f"{name}.lua"
    file.write_bytes(b"\n".join(bodies) + b"\n")
    numbers = {"tail": len(CLOSE), "bits": BITS, "passes": PASSES, "lengths": LENGTHS}
    script.write_text(LUA.format(bodies=file, key=KEY, close=CLOSE, **numbers))
    return script


def wrk(port: int, script: Path, *, connections: int, seconds: int) -> Load:
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "-s", str(script), f"http://127.0.0.1:{port}"]
    output = subprocess.run([*command, str(next(_runs))], capture_output=True, text=True, check=True).stdout
    found = re.search(r"RESULT (\S+) (\S+) (\S+) (.*)", output)
    assert found is not None, output
    failures = dict(zip(FAILURES, map(int, found[4].split()), strict=True))
    return Load(float(found[1]), float(found[2]), float(found[3]), {kind: n for kind, n in failures.items() if n})


def in_turn(port: int, bodies: Sequence[bytes], *, seconds: float) -> list[float]:
    """Return the latency of each request in milliseconds, over one connection with one request at a time.

    Unlike `wrk`, without correction for coordinated omission. No conversation is sent twice.
    """
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    headers = {"content-type": "application/json", "authorization": f"Bearer {KEY}"}
    times: list[float] = []
    with closing(connection):
        end = time.perf_counter() + seconds
        for body in _unlike(bodies):
            began = time.perf_counter()
            connection.request("POST", "/v1/chat/completions", body, headers)
            answer = connection.getresponse()
            answer.read()
            assert answer.status == 200, answer.status
            times.append(1000 * (time.perf_counter() - began))
            if time.perf_counter() > end:
                break
    return times


def _unlike(bodies: Sequence[bytes]) -> Iterator[bytes]:
    """Repeat the bodies, different in every pass."""
    for number in count(next(_runs) * PASSES + 1):
        blanks = f"{number:0{BITS}b}"[::-1].replace("0", " ").replace("1", "\\t").encode()
        blanks += b" " * (number % LENGTHS)
        for body in bodies:
            yield body.removesuffix(CLOSE.encode()) + blanks + CLOSE.encode()


@contextmanager
def upstream(folder: Path) -> Iterator[None]:
    """Run nginx with a fixed response."""
    folder.chmod(0o755)  # nginx's worker, which may be another user, buffers large bodies there
    conf = folder / "nginx.conf"
    conf.write_text(
        f"""
        daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log stderr;
        events {{ worker_connections 4096; }}
        http {{
          access_log off; client_body_temp_path {folder}/body; client_max_body_size 64m; keepalive_requests 1000000000;
          client_body_buffer_size 4m;
          server {{
            listen 127.0.0.1:{UPSTREAM_PORT};
            location / {{ default_type application/json; return 200 '{ANSWER}'; }}
          }}
        }}"""
    )
    command = ["nginx", "-p", str(folder), "-c", str(conf)]
    with running(command, ready=f"http://127.0.0.1:{UPSTREAM_PORT}/", output=subprocess.DEVNULL):
        yield


@contextmanager
def passthrough() -> Iterator[psutil.Process]:
    """Run the bare pass-through in front of `upstream`."""
    command = [sys.executable, "-m", "benchmarks.passthrough", UPSTREAM, str(PASSTHROUGH_PORT)]
    with running(command, ready=f"http://127.0.0.1:{PASSTHROUGH_PORT}/") as process:
        yield process


def trained(home: Path) -> None:
    """Train the starter router in `home` unless it has a router."""
    if not (home / "artifacts" / "router" / "current").exists():
        print("training the starter router once, about a minute", file=sys.stderr)
        command = [sys.executable, "-m", "coe.cli", "train", "--out", str(home / "artifacts")]
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


@contextmanager
def gateway(
    folder: Path,
    *,
    workers: int,
    home: Path,
    base_url: str = "",
    keys: str = ACCESS,
    port: int = GATEWAY_PORT,
    checkout: Path = ROOT,
    declared: str = "",
) -> Iterator[tuple[psutil.Process, float]]:
    """The gateway with keys, limits, metrics and log on, every expert at `base_url`; and the seconds until ready.
    `keys` is the section `access` of its experts.yaml, `declared` another text of the file. `checkout` is the folder
    whose code serves."""
    state = folder / "state"
    trained(home)
    shutil.copytree(home / "artifacts", state / "artifacts")
    config = folder / "experts.yaml"
    text = (checkout / "experts.yaml").read_text(encoding="utf-8")
    text = re.sub(r"^    context_length:.*\n", "", text, flags=re.MULTILINE)
    served = f"    runtime: external\n    base_url: {base_url}\n    context_length: 100000000"
    text = text.replace("    runtime: transformers", served)
    access = keys + (f"  counters: redis://127.0.0.1:{REDIS_PORT}/0\n" if workers > 1 else "")
    config.write_text(declared or re.sub(r"^access:\n(?:  .*\n)*", access, text, flags=re.MULTILINE))
    env = os.environ | {"COE_HOME": str(state), "COE_WORKERS": str(workers)}
    env["PYTHONPATH"] = str(checkout)
    command = [sys.executable, "-m", "coe.cli", "serve", "--config", str(config), "--port", str(port)]
    with redis() if workers > 1 else nullcontext():  # workers share what each key has used
        begin = time.monotonic()
        ready = f"http://127.0.0.1:{port}/health/ready"
        with running(command, ready=ready, env=env, folder=checkout) as process:
            yield process, time.monotonic() - begin


@contextmanager
def redis() -> Iterator[None]:
    require("redis-server")
    command = ["redis-server", "--port", str(REDIS_PORT), "--save", "", "--appendonly", "no"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        for _ in range(500):
            with suppress(OSError), socket.create_connection(("127.0.0.1", REDIS_PORT), timeout=1):
                break
            time.sleep(0.02)
        yield
    finally:
        process.terminate()
        process.wait()


@contextmanager
def running(
    command: Sequence[str],
    *,
    ready: str,
    env: dict[str, str] | None = None,
    output: int | None = None,
    folder: Path = ROOT,
) -> Iterator[psutil.Process]:
    """Run a server in `folder` until the block ends; enters once `ready` answers."""
    with suppress(OSError), socket.create_connection((urlsplit(ready).hostname, urlsplit(ready).port), timeout=1):
        raise SystemExit(f"another process listens at {ready}: stop it first")  # it would be measured instead
    process = subprocess.Popen(command, env=env, cwd=folder, stdout=output, stderr=output)
    try:
        _until_answers(ready, process)
        yield psutil.Process(process.pid)
    finally:
        process.terminate()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _until_answers(url: str, process: subprocess.Popen[bytes]) -> None:
    for _ in range(4500):
        try:
            with urllib.request.urlopen(url, timeout=1):
                return
        except OSError:
            if process.poll() is not None:
                break
            time.sleep(0.02)
    raise SystemExit(f"nothing answers at {url}")


def worker_of(process: psutil.Process) -> psutil.Process:
    """The process of a server that does the work: the largest."""
    return max([process, *process.children(recursive=True)], key=lambda found: found.memory_info().rss)


def rss_mb(process: psutil.Process) -> float:
    """Of the largest process. Pages that it shares with its parent count in full."""
    return round(worker_of(process).memory_info().rss / 1e6, 1)


def peak_rss_mb(process: psutil.Process) -> float:
    """Of the largest process so far, on Linux."""
    status = Path(f"/proc/{worker_of(process).pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024 // 10**6


def processor_seconds(process: psutil.Process) -> float:
    """Processor time of a server so far, its workers' included."""
    times = [one.cpu_times() for one in (process, *process.children(recursive=True))]
    return float(sum(spent.user + spent.system for spent in times))


def median(rounds: Sequence[dict[str, float]], key: str) -> float:
    return round(statistics.median(found[key] for found in rounds), 3)
