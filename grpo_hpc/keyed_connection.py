"""A connection to a server that everybody on the machine reaches: whoever shows no key of it soon is ended."""

from __future__ import annotations

from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

STRANGERS = 128
"""Connections at a time whose key is not known yet."""
STRANGER_S = 10.0
"""Seconds that a connection has to show its key."""


class KeyedConnection(H11Protocol):
    """One that is ended unless it shows a key soon, or when too many others come that do not either.

    The application finds it under ``connection`` in the state of a request's scope. Headers have 64 KiB at most.
    """

    def connection_made(self, transport: Any) -> None:
        self.app_state = {"connection": self}
        self.arrived, self.stranger = self.loop.time(), True
        strangers = [other for other in self.connections if isinstance(other, KeyedConnection) and other.stranger]
        if len(strangers) >= STRANGERS:
            min(strangers, key=lambda other: other.arrived).transport.abort()
        super().connection_made(transport)
        self._late = self.loop.call_later(STRANGER_S, transport.abort)  # to close waits for who does not read

    def connection_lost(self, exc: Exception | None) -> None:
        self._late.cancel()
        super().connection_lost(exc)

    def known(self) -> None:
        """It has shown a key."""
        self._late.cancel()
        self.stranger = False
