"""Addresses of this machine and of the cluster around it."""

from __future__ import annotations

import ipaddress
import socket


def own_address(peer: str) -> str:
    """The address of this node in the network that leads to ``peer``; nothing listens on another one.

    The node's own name may lead to a loopback address, as on Debian, which no other node can reach.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((peer, 9))  # sends nothing
        return str(probe.getsockname()[0])


def inside_cluster(host: str) -> bool:
    """Whether ``host`` is this machine or one of its network, which no proxy needs to be asked for.

    Names without a dot are names of nodes; any other name is looked up, and may be a node's when it leads to an address
    of a private network (RFC 1918, RFC 4193). What cannot be looked up here is outside.
    """
    if "." not in host and ":" not in host:
        return True
    try:
        found = {str(entry[4][0]).partition("%")[0] for entry in socket.getaddrinfo(host, None)}
    except (OSError, UnicodeError):
        return False
    return all(ipaddress.ip_address(address).is_private for address in found)
