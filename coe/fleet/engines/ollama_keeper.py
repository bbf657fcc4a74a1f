"""Keeps one model loaded in an Ollama that runs already: `ollama_keeper.py ROOT MODEL`, with the model's tag

The process stands for the model, as a server's process does for a server that CoE starts. It loads the model without a
time limit, and unloads it when it receives SIGTERM, so that its end frees the memory. Ollama itself keeps running. If
it cannot load the model, or loses it while Ollama restarts, health checks and requests report that.

Run it as a script, by path: it imports nothing of CoE and starts in about 50 ms.
"""

from __future__ import annotations

import json
import signal
import sys
import time
import urllib.error
import urllib.request
from typing import Any

LOAD_TIMEOUT = 600.0
UNLOAD_TIMEOUT = 4.0
"""Seconds for all of it: below the time between SIGTERM and SIGKILL."""
_POLL_INTERVAL = 0.1
_STOPPED = 128 + signal.SIGTERM
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # this machine, whatever proxy is set


def main(root: str, model: str) -> int:
    """Loads the model, waits for SIGTERM, unloads it; returns the exit code."""
    signal.signal(signal.SIGTERM, _end)
    try:
        _request(f"{root}/api/generate", {"model": model, "keep_alive": -1, "stream": False}, LOAD_TIMEOUT)
        sys.stdout.write("attached\n")  # specs.ATTACHED
        sys.stdout.flush()
        while True:
            signal.pause()
    except urllib.error.HTTPError as error:
        what = f"{error.code} {error.read(500).decode(errors='replace')}"
        remedy = f"; run `ollama pull {model}`" if error.code == 404 else ""
        _fail(f"Ollama at {root} does not load {model!r}: {what}{remedy}")
    except OSError as error:
        _fail(f"no Ollama answers at {root} ({_reason(error)}); start it, or correct `base_url` in experts.yaml")
    except KeyboardInterrupt:
        return _unload(root, model)
    return 1


def _end(*_: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt


def _unload(root: str, model: str) -> int:
    """Unloads the model and waits until it has left the memory."""
    signal.signal(signal.SIGALRM, _expire)  # the timeout of a request is for each read, not for the answer
    signal.setitimer(signal.ITIMER_REAL, UNLOAD_TIMEOUT)
    try:
        _request(f"{root}/api/generate", {"model": model, "keep_alive": 0}, UNLOAD_TIMEOUT)
        while is_loaded(_request(f"{root}/api/ps", None, UNLOAD_TIMEOUT), model):
            time.sleep(_POLL_INTERVAL)
    except OSError as error:
        _fail(f"Ollama at {root} does not unload {model!r}: {_reason(error)}")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return _STOPPED


def _reason(error: OSError) -> object:
    """Return the cause that urllib has wrapped, or the error itself."""
    return error.reason if isinstance(error, urllib.error.URLError) else error


def _expire(*_: object) -> None:
    raise TimeoutError(f"{UNLOAD_TIMEOUT:g} s have passed")


def is_loaded(page: Any, model: str) -> bool:
    """Return True if the page /api/ps lists the model, a name with its tag."""
    listed = page.get("models") if isinstance(page, dict) else None
    return any(isinstance(one, dict) and model in (one.get("name"), one.get("model")) for one in listed or ())


def _fail(what: str) -> None:
    sys.stdout.write(f"error: {what}\n")


def _request(url: str, body: Any, time_limit: float) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"content-type": "application/json"})  # noqa: S310  of this machine
    with _OPENER.open(request, timeout=time_limit) as response:
        text = response.read(2**16)
    try:
        return json.loads(text)
    except ValueError:
        raise OSError(f"the answer is not JSON: {text[:100]!r}") from None


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
