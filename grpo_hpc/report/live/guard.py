"""Who is answered: a browser that asks this machine by its own name, reads, and has the token in its address."""

from __future__ import annotations

import hmac

from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_OWN_NAMES = ("127.0.0.1", "localhost")  # another one in Host: a page elsewhere has had its name lead here
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class Guard:
    """Refuses everybody else before anything is read; tells browsers to keep nothing and to show it nowhere else.

    Args:
        token: the first part of every path that is answered.
    """

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app, self._token = app, token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                more = [(name.lower().encode(), value.encode()) for name, value in _HEADERS.items()]
                message = {**message, "headers": [*message["headers"], *more]}
            await send(message)

        refusal = self._refusal(scope) if scope["type"] == "http" else None
        await (refusal or self._app)(scope, receive, with_headers)

    def _refusal(self, scope: Scope) -> ASGIApp | None:
        hosts = [value.decode("latin-1") for name, value in scope["headers"] if name == b"host"]
        if len(hosts) != 1 or hosts[0].partition(":")[0] not in _OWN_NAMES:
            return _said("Ask for this server as 127.0.0.1 or localhost.", 421)
        given = "".join(scope["path"].split("/")[1:2])  # nothing of `*`, which HTTP knows, too
        if not hmac.compare_digest(given.encode(errors="replace"), self._token):
            return _said("The address lacks its token: take the one that `grpo-hpc view` has printed.", 403)
        if connection := scope.get("state", {}).get("connection"):  # a KeyedConnection, which may stay
            connection.known()
        return None if scope["method"] in ("GET", "HEAD") else _said("Runs can be looked at here, nothing else.", 405)


def _said(text: str, status: int) -> ASGIApp:
    return PlainTextResponse(f"{text}\n", status)
