"""Strangers at the server that vLLM answers through: over real sockets, and what they cost."""

from __future__ import annotations

import json
import resource
import socket
import subprocess
import sys
import threading
from contextlib import ExitStack, contextmanager, suppress
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from grpo_hpc.rollout import keyed_http
from grpo_hpc.rollout.keyed_http import KeyedServer

KEY = "a key of this test"
WITH_KEY = f"GET /health HTTP/1.1\r\nAuthorization: Bearer {KEY}\r\n"
OPEN_FILES = 256
SERVER = f"""
import resource, sys
from grpo_hpc.rollout.keyed_http import KeyedServer
resource.setrlimit(resource.RLIMIT_NOFILE, ({OPEN_FILES}, {OPEN_FILES}))
server = KeyedServer("127.0.0.1", 0, {KEY!r}, {{"/health": dict}}, {{}})
server.start()
print(server.server_port, flush=True)
sys.stdin.read()
"""


@contextmanager
def serving():
    """Address of a server that says what was posted to it."""
    server = KeyedServer("127.0.0.1", 0, KEY, {"/health": dict}, {"/echo": lambda told: told})
    server.start()
    try:
        yield server.server_address
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def server():
    with serving() as address:
        yield address


def connected(stack: ExitStack, server, source: str = "127.0.0.1", words: str = "") -> socket.socket:
    found = stack.enter_context(socket.create_connection(server, 20, (source, 0)))
    found.sendall(words.encode())
    return found


def ask(server, path: str = "/health", body: bytes | None = None, key: str = KEY) -> dict:
    request = Request(f"http://{server[0]}:{server[1]}{path}", body, {"Authorization": f"Bearer {key}"})
    with urlopen(request, timeout=20) as answer:
        return json.loads(answer.read())


def is_ended(connection: socket.socket) -> bool:
    """Whether the other side says no more and hangs up; pytest's own limit would strike if it never did."""
    with suppress(ConnectionResetError):
        while connection.recv(1 << 16):
            pass
    return True


def test_more_idle_connections_than_open_files_stop_nothing():
    process = subprocess.Popen([sys.executable, "-c", SERVER], stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True)
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    with process, ExitStack() as stack:
        server = "127.0.0.1", int(process.stdout.readline())
        for _ in range(min(395, most - 200)):
            connected(stack, server, words="GET /health HTTP/1.1\r\n")
        assert ask(server) == {}
        process.stdin.close()


def test_the_address_that_has_most_connections_loses_one(server, monkeypatch):
    monkeypatch.setattr(keyed_http, "STRANGERS", 4)
    with ExitStack() as stack:
        slow = connected(stack, server, words=WITH_KEY)
        idle = [connected(stack, server, "127.0.0.2") for _ in range(8)]
        assert all(is_ended(connection) for connection in idle[:5])
        slow.sendall(b"Connection: close\r\n\r\n")
        assert slow.recv(12) == b"HTTP/1.1 200"


@pytest.mark.parametrize("words", ["", WITH_KEY, "POST /echo HTTP/1.1\r\nContent-Length: 9\r\n\r\n1"])
def test_who_does_not_show_the_key_in_time_is_ended(monkeypatch, words):
    monkeypatch.setattr(keyed_http, "STRANGER_S", 0.2)
    with serving() as server, ExitStack() as stack:
        assert is_ended(connected(stack, server, words=words))
        assert ask(server) == {}


def test_whoever_sends_a_little_now_and_then_is_ended_as_well(monkeypatch):
    monkeypatch.setattr(keyed_http, "STRANGER_S", 0.5)
    with serving() as server, ExitStack() as stack:
        drip = connected(stack, server, words="GET /health HTTP/1.1\r\nX: ")
        drip.settimeout(0.1)
        while True:
            try:
                drip.sendall(b"x")
                if not drip.recv(1):
                    break
            except TimeoutError:
                continue
            except ConnectionError:
                break
        assert ask(server) == {}


def test_a_body_that_never_comes_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(keyed_http._Handler, "timeout", 0.2)
    with serving() as server, ExitStack() as stack:
        words = WITH_KEY.replace("GET /health", "POST /echo") + "Content-Length: 9\r\n\r\n1"
        assert is_ended(connected(stack, server, words=words))
        assert ask(server) == {}


def test_a_header_is_read_so_far_and_no_further(server):
    """The key lies behind more than is read of a stranger."""
    lines = [f"X-{n}: {'x' * 4000}\r\n" for n in range(1 + keyed_http.STRANGER_BYTES // 4000)]
    with ExitStack() as stack:
        short = connected(stack, server, words=WITH_KEY + "".join(lines[:-2]) + "\r\n")
        assert short.recv(12) == b"HTTP/1.1 200"
        long = connected(stack, server, words=WITH_KEY.replace("Auth", "".join(lines) + "Auth") + "\r\n")
        with suppress(ConnectionResetError):  # what was not read takes the answer with it
            assert long.recv(12) == b"HTTP/1.1 401"


def test_whoever_has_the_key_may_send_more(server):
    told = {"prompts": [[7] * 200_000]}
    assert ask(server, "/echo", json.dumps(told).encode()) == told


@pytest.mark.parametrize(
    ("length", "status"), [("9" * 5000, 413), (str(1 + (4 << 30)), 413), ("-5", 400), ("²", 400), ("x", 400)]
)
def test_lengths_that_are_none(server, length, status):
    for key, said in ((KEY, status), ("another", 401)):
        words = f"POST /echo HTTP/1.1\r\nAuthorization: Bearer {key}\r\nContent-Length: {length}\r\n\r\n"
        with ExitStack() as stack:
            asked = connected(stack, server)
            asked.sendall(words.encode("latin-1"))
            asked.shutdown(socket.SHUT_WR)
            assert asked.recv(12) == f"HTTP/1.1 {said}".encode()


def test_strangers_leave_no_thread_and_no_line_behind(capfd):
    before = set(threading.enumerate())
    with serving() as server, ExitStack() as stack:
        for words in ("", "\0\r\n\r\n", "GET / HTTP/9.9\r\n\r\n", "POST / HTTP/1.1\r\nContent-Length: 9\r\n\r\n"):
            connected(stack, server, words=words).shutdown(socket.SHUT_RDWR)
        with pytest.raises(HTTPError, match="401"):
            ask(server, key="")
        assert ask(server) == {}
    for thread in set(threading.enumerate()) - before:
        thread.join()
    assert capfd.readouterr() == ("", "")
