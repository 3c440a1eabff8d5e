"""Addresses of this machine."""

from __future__ import annotations

import socket


def own_address(peer: str) -> str:
    """The address of this node in the network that leads to ``peer``; nothing listens on another one.

    The node's own name may lead to a loopback address, as on Debian, which no other node can reach.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((peer, 9))  # sends nothing
        return str(probe.getsockname()[0])
