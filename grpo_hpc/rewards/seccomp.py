"""System calls that a program in the sandbox does without: they hold memory that no other limit counts.

What a process maps, writes to files and starts is limited by :mod:`grpo_hpc.rewards.launcher`. Here is what would get
around that: files without a name, segments and queues that live on without a process, pages that a pipe or a ring keeps
after they were unmapped, buffers of sockets as large as the site allows, and user namespaces, in which anybody may
mount a file system in memory. A filter needs no privilege, and what a program starts inherits it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from grpo_hpc.errors import EnvironmentProblem

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06  # linux/bpf_common.h
# name: its number on x86_64 and on aarch64, from the kernel's tables
_REFUSED = {
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "shmget": (29, 194),
    "msgget": (68, 186),
    "semget": (64, 190),
    "vmsplice": (278, 75),
    "io_uring_setup": (425, 425),
    "bpf": (321, 280),
    "unshare": (272, 97),
    "setns": (308, 268),
    "clone3": (435, 435),  # its flags cannot be seen from here; the C library then calls clone
}
# the same, with the argument that matters, counted from 0, how it is compared, and with what
_REFUSED_WITH = [
    ("clone", (56, 220), 0, _ANY_BIT, 0x10000000),  # CLONE_NEWUSER
    ("setsockopt", (54, 208), 2, _EQUAL, 7),  # SO_SNDBUF
    ("setsockopt", (54, 208), 2, _EQUAL, 8),  # SO_RCVBUF
]
_MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column of the table, AUDIT_ARCH of linux/audit.h
_ALLOW, _KILL, _NO_SUCH_CALL = 0x7FFF0000, 0x80000000, 0x00050000 | 38  # ENOSYS: as a kernel without it answers
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16  # bytes into struct seccomp_data, on a machine with small ends first
_FIRST_OF_X32 = 0x40000000


def refusing_filter(machine: str) -> bytes:
    """A seccomp program (``struct sock_filter``, one after the other) for processes on ``machine``.

    A call that is refused fails with ENOSYS. A process that takes another machine's calls, such as those of 32 bits, is
    killed.

    Args:
        machine: as in ``uname -m``.

    Raises:
        EnvironmentProblem: the numbers of its system calls are not known.
    """
    if machine not in _MACHINES:
        known = " and ".join(_MACHINES)
        raise EnvironmentProblem(
            f"programs cannot be run here: system calls of {machine} are not known, those of {known} are",
            "Take `code` out of rewards.reward_funcs, or run on such a machine.",
        )
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in _instructions(*_MACHINES[machine]))


def _instructions(column: int, architecture: int) -> Iterator[tuple[int, int, int, int]]:
    """Operation, how many instructions to leave out where it holds and where not, operand."""
    refuse = (_RETURN, 0, 0, _NO_SUCH_CALL)
    yield from [(_LOAD, 0, 0, _ARCHITECTURE), (_EQUAL, 1, 0, architecture), (_RETURN, 0, 0, _KILL)]
    yield from [(_LOAD, 0, 0, _NUMBER), (_AT_LEAST, 0, 1, _FIRST_OF_X32), refuse]
    for numbers in _REFUSED.values():
        yield from [(_EQUAL, 0, 1, numbers[column]), refuse]
    for _, numbers, argument, operation, value in _REFUSED_WITH:
        yield from [(_EQUAL, 0, 4, numbers[column]), (_LOAD, 0, 0, _ARGUMENTS + 8 * argument)]
        yield from [(operation, 0, 1, value), refuse, (_LOAD, 0, 0, _NUMBER)]
    yield _RETURN, 0, 0, _ALLOW
