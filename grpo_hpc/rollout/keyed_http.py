"""HTTP with JSON for whoever has the key. Whoever has not costs little: few connections, few bytes, few seconds."""

from __future__ import annotations

import hmac
import io
import json
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

STRANGERS = 128
"""Connections at a time whose key is not known yet."""
STRANGER_S = 10.0
"""Seconds that each of them has to show it."""
STRANGER_BYTES = 1 << 16
"""Bytes that are read from each of them, headers included."""
SILENCE_S = 300.0
"""Seconds that one with the key may keep its request waiting, or not read its answer."""
LONGEST_BODY = 4 << 30

Object = dict[str, Any]
Answer = Object | str
"""JSON, or plain text."""


class Refused(Exception):
    """A request that cannot be answered; ``status`` is HTTP's."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class KeyedServer(ThreadingHTTPServer):
    """Answers each request in a thread of its own, once it is started and until it is shut down.

    Args:
        gets: what answers GET, by path.
        posts: what answers POST, by path, given the object that was sent; may raise :class:`Refused`.
        key: that requests must have in their header ``Authorization: Bearer KEY``.
    """

    daemon_threads = True
    request_queue_size = STRANGERS

    def __init__(
        self,
        host: str,
        port: int,
        key: str,
        gets: Mapping[str, Callable[[], Answer]],
        posts: Mapping[str, Callable[[Object], Answer]],
    ) -> None:
        self.expected, self.gets, self.posts = f"Bearer {key}".encode(), gets, posts
        self.strangers = _Strangers()
        super().__init__((host, port), _Handler)

    def start(self) -> None:
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def process_request(self, request: Any, client_address: Any) -> None:
        self.strangers.admit(request, client_address[0])
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self.strangers.forget(request)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        self.strangers.end_late()

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), OSError):  # else somebody has hung up, which says nothing
            super().handle_error(request, client_address)


class _Strangers:
    """Connections whose key is not known yet, the oldest first."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[socket.socket, tuple[str, float]] = {}  # address and time of arrival

    def admit(self, connection: socket.socket, address: str) -> None:
        """One more; where there are too many, the oldest from the address that has most of them is ended."""
        with self._lock:
            if len(self._known) >= STRANGERS:
                (busiest, _), *_ = Counter(address for address, _ in self._known.values()).most_common(1)
                self._end(next(one for one, (address, _) in self._known.items() if address == busiest))
            self._known[connection] = address, time.monotonic()

    def forget(self, connection: socket.socket) -> None:
        with self._lock:
            self._known.pop(connection, None)

    def end_late(self) -> None:
        with self._lock:
            latest = time.monotonic() - STRANGER_S
            for late in [one for one, (_, arrived) in self._known.items() if arrived < latest]:
                self._end(late)

    def _end(self, connection: socket.socket) -> None:
        del self._known[connection]
        with suppress(OSError):  # it has hung up
            connection.shutdown(socket.SHUT_RDWR)  # its thread reads the end, and closes


class _Bounded(io.RawIOBase):
    """What comes over a connection: ``left`` bytes, and then its end."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection, self.left = connection, STRANGER_BYTES

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        room = memoryview(buffer)[: self.left]
        got = self._connection.recv_into(room) if room else 0
        self.left -= got
        return got


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = SILENCE_S
    server: KeyedServer

    def setup(self) -> None:
        super().setup()
        self.rfile.close()
        self._arriving = _Bounded(self.connection)
        self.rfile = io.BufferedReader(self._arriving)

    def do_GET(self) -> None:
        self._guarded(self.server.gets, lambda work, _: work())

    def do_POST(self) -> None:
        self._guarded(self.server.posts, lambda work, body: work(_object(body)))

    def _guarded(self, known: Mapping[str, Callable[..., Answer]], ask: Callable[..., Answer]) -> None:
        length = self._length()
        if not hmac.compare_digest(self.headers.get("Authorization", "").encode(), self.server.expected):
            self.rfile.read(min(length, STRANGER_BYTES))  # what is not read would take the answer with it
            return self._last(401, "the key is missing or wrong")
        self.server.strangers.forget(self.connection)
        self._arriving.left = sys.maxsize
        if length > LONGEST_BODY:
            return self._last(413, f"{length} bytes are more than {LONGEST_BODY}, the most that is read")
        body, work = self.rfile.read(length), known.get(self.path)
        if work is None:
            return self._say(404, {"error": f"nothing is at {self.path}"})
        try:
            found = ask(work, body)
        except Refused as error:
            return self._say(error.status, {"error": str(error)})
        except (ValueError, TypeError) as error:
            return self._say(400, {"error": f"not a request: {error}"})
        return self._say(200, found)

    def _length(self) -> int:
        told = self.headers.get("Content-Length", "0")
        return int(told[:20]) if told.isdecimal() else 0

    def _last(self, status: int, error: str) -> None:
        self.close_connection = True
        self._say(status, {"error": error})

    def _say(self, status: int, body: Answer) -> None:
        text = (body if isinstance(body, str) else json.dumps(body)).encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/plain" if isinstance(body, str) else "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, format: str, *args: Any) -> None:
        pass  # one line for each request says nothing


def _object(body: bytes) -> Object:
    told = json.loads(body)
    if not isinstance(told, dict):
        raise ValueError(f"an object is wanted, got {type(told).__name__}")
    return told
