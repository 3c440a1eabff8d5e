"""A stand-in for vLLM's server: takes its options, its key from ``VLLM_API_KEY``, and answers over real HTTP.

``payload.json`` in the run directory: ``server_fault``, such as
``{"attempt": "attempt_1", "server": 1, "kind": "die", "requests": 3}``; other kinds are ``start``, ``deaf``, ``hold``.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml

WARM_UP_S = 1


def main() -> int:
    parser = argparse.ArgumentParser()
    for option in ("--host", "--model", "--dtype"):
        parser.add_argument(option, required=True)
    for option in ("--port", "--seed"):
        parser.add_argument(option, type=int, required=True)
    told, _ = parser.parse_known_args()
    fault = fault_of(told.seed)
    if fault.get("kind") == "start":
        raise RuntimeError("the server was told to fail at its start")
    answers = [0]

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            allowed = self.headers.get("Authorization") == f"Bearer {os.environ['VLLM_API_KEY']}"
            if time.monotonic() - started < WARM_UP_S or fault.get("kind") == "deaf":
                self.answer(503)
            elif self.path == "/health":
                self.answer(200)
            elif not allowed:
                self.answer(401)
            else:
                self.answer(200, str(os.getpid()))
                answers[0] += self.path == "/v1/completions"
                if fault.get("kind") == "die" and answers[0] >= fault["requests"]:
                    print("RuntimeError: the server was told to die", flush=True)
                    threading.Timer(0.05, os._exit, [7]).start()

        def answer(self, code: int, text: str = "") -> None:
            self.send_response(code)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: object) -> None:
            """Say nothing of every request."""

    held = [shared_memory(told.seed)] if fault.get("kind") == "hold" else []
    started = time.monotonic()
    ThreadingHTTPServer((told.host, told.port), Handler).serve_forever()
    return len(held)


def shared_memory(seed: int) -> mmap.mmap:
    """A segment of this process that nobody removes when it is killed."""
    with Path(f"/dev/shm/test-{os.getppid()}-{seed}").open("w+b") as file:
        file.write(bytes(4096))
        file.flush()
        return mmap.mmap(file.fileno(), 4096)


def fault_of(seed: int) -> dict[str, Any]:
    """What this server is to do wrong; its number in the plan is told by its seed."""
    run = Path.cwd()
    number = seed - yaml.safe_load((run / "run.yaml").read_text())["seed"]
    fault = json.loads((run / "payload.json").read_text()).get("server_fault", {})
    attempt = (run / "latest").resolve().name
    here = fault.get("attempt", "attempt_1") in (None, attempt) and fault.get("server") in (None, number)
    return dict(fault) if here else {}


if __name__ == "__main__":
    sys.exit(main())
