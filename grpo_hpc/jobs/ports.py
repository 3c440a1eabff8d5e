"""A port that no other job of ours on this node has, for as long as it is needed.

Looking for a free port and using it later is a race between two jobs on one node. Here a port belongs to whoever holds
the abstract unix socket of its name: taking one is atomic, the kernel frees it when its holder dies, and it lives in
the network namespace, as ports do, so neither a private /tmp nor another user comes between. See unix(7).
"""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from grpo_hpc.errors import EnvironmentProblem

_FIRST = 20000
_EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")


def job_ports(job: int) -> list[int]:
    """Ports below those that the kernel gives to outgoing connections; each job looks at another one first."""
    last = int(_EPHEMERAL.read_text().split()[0]) if _EPHEMERAL.is_file() else 32768
    ports = list(range(_FIRST, last))
    start = job % len(ports)
    return ports[start:] + ports[:start]


@contextmanager
def claimed_port(ports: Sequence[int]) -> Iterator[int]:
    """The first free one of ``ports``, ours until the context ends.

    Raises:
        EnvironmentProblem: every port is taken.
    """
    for port in ports:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as claim:
            try:
                claim.bind(f"\0grpo-hpc-port-{port}")
            except OSError:
                continue
            if _free(port):
                yield port
                return
    raise EnvironmentProblem(f"no port from {min(ports)} to {max(ports)} is free on this node")


def _free(port: int) -> bool:
    """Does nobody listen there? What is not ours takes no claim."""
    with socket.socket(socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True
