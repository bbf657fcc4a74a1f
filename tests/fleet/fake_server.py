"""A tiny expert server for tests: `fake_server.py PORT MODE PIDS`. It adds the ids of its processes to the file PIDS.

GET /die ends it, GET /freeze stops it dead, GET /shout fills its log.
"""

import json
import os
import signal
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

IDLE = "import os, signal, sys, time; {}; open(sys.argv[1], 'a').write(f'{{os.getpid()}}\\n'); time.sleep(600)"
FAMILY = {
    "child": IDLE.format("pass"),
    "child in a session of its own": IDLE.format("os.setsid()"),
    "the same, and deaf": IDLE.format("os.setsid(); signal.signal(signal.SIGTERM, signal.SIG_IGN)"),
    "grandchild whose parent has ended": IDLE.format("os.fork() and os._exit(0); os.setsid()"),
    "child with a grandchild": IDLE.format("os.fork()"),
}
FAMILY_SIZE = 7


class Handler(BaseHTTPRequestHandler):
    mode = ""

    def do_GET(self) -> None:
        if self.path == "/die":
            os._exit(7)
        if self.path == "/freeze":
            os.kill(os.getpid(), signal.SIGSTOP)
        if self.path == "/shout":
            write("x" * 12_000_000 + "the end of it")
        self.reply(503 if self.mode == "sick" else 200, {"status": "as it is"})

    def do_POST(self) -> None:
        if self.path.startswith(("/sleep", "/wake_up")):
            write(self.path)
            self.reply(500 if self.mode == "sleepless" else 200, {})
            return
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.mode == "loading":
            self.reply(503, {"error": "loading"})
        elif self.mode == "other-model":
            self.reply(404, {"error": f"no model {body['model']}"})
        elif self.mode == "no-chat":
            self.reply(200, {"hello": "world"})
        elif body.get("stream"):
            chunk = {"index": 0, "delta": {"role": "assistant", "content": "Hi"}, "finish_reason": "stop"}
            self.answer(
                200, "text/event-stream", f"data: {json.dumps({'choices': [chunk]})}\n\ndata: [DONE]\n\n".encode()
            )
        else:
            self.reply(200, {"choices": [{"message": {"role": "assistant", "content": "Hi"}}]})

    def reply(self, status: int, body: object) -> None:
        self.answer(status, "application/json", json.dumps(body).encode())

    def answer(self, status: int, media_type: str, data: bytes) -> None:
        self.send_response(status)
        self.send_header("content-type", media_type)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


def write(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main(port: int, mode: str, pids: Path, host: str = "127.0.0.1") -> None:
    started_before = pids.exists()
    with pids.open("a") as file:
        file.write(f"{os.getpid()}\n")
    write(f"OMP_NUM_THREADS={os.environ['OMP_NUM_THREADS']}")
    if mode == "dies" or (mode == "dies-again" and started_before):
        sys.exit("first line\nsecond line\nValueError: no such weights")
    if mode == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if mode == "family" and not started_before:
        for script in FAMILY.values():
            subprocess.Popen([sys.executable, "-c", script, str(pids)])
        while pids.read_text().count("\n") < FAMILY_SIZE:
            time.sleep(0.01)
    Handler.mode = mode
    ThreadingHTTPServer((host, port), Handler).serve_forever()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
