"""The server: one socket on loopback, an address with a token that is made anew for every start."""

from __future__ import annotations

import errno
import getpass
import logging
import secrets
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import uvicorn

from grpo_hpc.errors import ConfigError
from grpo_hpc.keyed_connection import STRANGERS, KeyedConnection
from grpo_hpc.report.live.shelf import Shelf
from grpo_hpc.report.live.web_app import web_app

_LOOPBACK = "127.0.0.1"


def serve(folder: str | Path, port: int, say: Callable[[str], None]) -> None:
    """Show the runs in ``folder`` until somebody presses Ctrl-C.

    Args:
        port: 0 takes a free one.
        say: is told the address.

    Raises:
        ConfigError: there is no such folder, or somebody has the port.
    """
    shelf, token = Shelf(folder), secrets.token_urlsafe(24)
    with _listening(port) as listener:
        taken = listener.getsockname()[1]
        say(f"http://{_LOOPBACK}:{taken}/{token}/")
        say(
            f"From another machine, this first, and then the same address there:\n"
            f"  ssh -N -L {taken}:{_LOOPBACK}:{taken} {_user()}@{socket.gethostname()}"
        )
        say("Whoever has the address can read these runs. Ctrl-C ends it.")
        with suppress(KeyboardInterrupt):
            _server(shelf, token).run(sockets=[listener])


def _server(shelf: Shelf, token: str) -> _Server:
    config = uvicorn.Config(
        web_app(shelf, token),
        http=KeyedConnection,
        access_log=False,  # it would hold the token
        log_level="error",  # what strangers send wrong is no news
        lifespan="off",
        ws="none",
        proxy_headers=False,
        server_header=False,
        limit_concurrency=2 * STRANGERS,
        timeout_graceful_shutdown=1,
    )
    return _Server(config)


class _Server(uvicorn.Server):
    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Answers that are cut off now, behind a slow disk or a client that does not read, are no errors."""
        logging.getLogger("uvicorn.error").disabled = True
        await super().shutdown(sockets)


def _listening(port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((_LOOPBACK, port))
        listener.listen(STRANGERS)
    except OSError as error:
        listener.close()
        if error.errno not in (errno.EADDRINUSE, errno.EACCES):
            raise
        said = f"port {port} cannot be had: {error.strerror}"
        raise ConfigError(said, "Leave --port out: a free one is taken.") from None
    return listener


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # one without a name, as in containers
        return "USER"
