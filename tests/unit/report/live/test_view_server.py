"""``grpo-hpc view`` as a process: whoever has no token holds up nobody, and Ctrl-C is no error."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.request import urlopen

import pytest

ROOT = Path(__file__).parents[4]
VIEW = """
import sys, time
from grpo_hpc import keyed_connection
from grpo_hpc.report.live import shelf
from grpo_hpc.report.live.serve import serve

keyed_connection.STRANGERS, keyed_connection.STRANGER_S, slow_s = map(float, sys.argv[1:])
overview = shelf.overview

def slow(folder):
    print("reads", flush=True)
    time.sleep(slow_s)
    return overview(folder)

shelf.overview = slow
serve(".", 0, lambda text: print(text, flush=True))
"""


@pytest.fixture
def view(tmp_path: Path) -> Iterator[Callable[..., tuple[subprocess.Popen[str], str]]]:
    """Starts a server; its process and address."""
    started = []

    def start(strangers: int = 128, stranger_s: float = 60, slow_s: float = 0) -> tuple[subprocess.Popen[str], str]:
        words = [sys.executable, "-c", VIEW, *map(str, (strangers, stranger_s, slow_s))]
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        process = subprocess.Popen(
            words, cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        started.append(process)
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        for _ in range(3):
            process.stdout.readline()
        return process, address

    yield start
    for process in started:
        process.kill()
        process.communicate()


def connected(address: str) -> socket.socket:
    host, _, port = address.split("/")[2].partition(":")
    return socket.create_connection((host, int(port)), 20)


def test_strangers_who_say_nothing_hold_up_nobody(view) -> None:
    _, address = view(strangers=100)
    idle = [connected(address) for _ in range(300)]
    with urlopen(address + "list", timeout=20) as answer:
        assert answer.status == 200
    assert idle[0].recv(1) == b"", "the oldest go first"


def test_a_stranger_has_so_long_and_so_many_bytes(view) -> None:
    _, address = view(stranger_s=1)
    silent, endless = connected(address), connected(address)
    endless.sendall(b"GET / HTTP/1.1\r\nA: " + b"a" * (1 << 17))
    assert endless.recv(12) == b"HTTP/1.1 400"
    assert silent.recv(1) == b""


def test_ctrl_c_while_somebody_waits_is_no_error(view) -> None:
    process, address = view(slow_s=2)
    waiting = connected(address)
    waiting.sendall(f"GET /{address.split('/')[3]}/list HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    assert process.stdout.readline() == "reads\n"
    process.send_signal(signal.SIGINT)
    said, complained = process.communicate(timeout=60)
    assert (process.returncode, said, complained) == (0, "", "")
