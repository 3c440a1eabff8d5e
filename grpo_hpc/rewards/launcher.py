"""Runs one untrusted program; started as a script by :mod:`grpo_hpc.rewards.sandbox`, with the standard library only.

The first line of standard input is the order, as JSON. When standard input ends, whoever asked is gone or has seen
enough, and the program is killed. Exit codes: the program's own, 128 + signal, 124 out of time. What keeps a program
from being isolated is written to the file descriptor ``status``, which the program never has.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import select
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

OUT_OF_TIME, NOT_ISOLATED = 124, 125
_CLONE = 0x10000000 | 0x00020000 | 0x40000000 | 0x20000000 | 0x08000000  # user, mount, net, pid, ipc
_MS_PRIVATE, _MS_BIND, _MS_MOVE, _NOSUID_NODEV = 0x4000 | 0x40000, 0x1000, 0x2000, 2 | 4
_DEVICES = ("null", "zero", "full", "random", "urandom")
_MOUNT_SETATTR, _AT_FDCWD, _AT_RECURSIVE, _RDONLY = 442, -100, 0x8000, 1
_PDEATHSIG, _SECCOMP, _CHILD_SUBREAPER, _NO_NEW_PRIVS = 1, 22, 36, 38
_FILTER = 2
_libc = ctypes.CDLL(None, use_errno=True)


def main() -> int:
    order = json.loads(_first_line())
    try:
        others = _tasks_of_user() if _counted_with_others(order["namespaces"]) else 0
        if order["namespaces"]:
            _enter_namespaces()
        _libc.prctl(_CHILD_SUBREAPER, 1, 0, 0, 0)
        child = os.fork()
    except OSError as error:
        return _not_isolated(order["status"], error)
    if child == 0:
        _become_the_program(order, others + order["processes"])
    os.close(order["status"])
    ended = os.pidfd_open(child)
    readable, _, _ = select.select([0, ended], [], [], order["seconds"])
    if ended not in readable:
        os.kill(child, signal.SIGKILL)
    code = _ended(child)
    if not order["namespaces"]:  # else they are gone with their process 1, and /proc is that of the namespace
        end_descendants()
    return code if readable else OUT_OF_TIME


def _ended(child: int) -> int:
    """Wait for a child; its exit code, or 128 + signal."""
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return code if code >= 0 else 128 - code


def _first_line() -> bytes:
    line = b""
    while not line.endswith(b"\n"):
        line += os.read(0, 1 << 16) or b"\n"  # nothing follows the line, so reading on in blocks is safe
    return line


def _enter_namespaces() -> None:
    uid, gid = os.getuid(), os.getgid()
    _check(_libc.unshare(_CLONE), "unshare")
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
    Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")


def _counted_with_others(namespaces: bool) -> bool:
    """Whether the kernel's limit of processes counts all of the user's, and not those of the user namespace alone."""
    version = tuple(int(part) for part in os.uname().release.replace("-", ".").split(".")[:2])
    return not namespaces or version < (5, 14)


def _tasks_of_user() -> int:
    """Processes and threads that this user has at present, as far as /proc shows them."""
    tasks = 0
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it ended
            if folder.stat().st_uid == os.getuid():
                tasks += len(list((folder / "task").iterdir()))
    return tasks


def _become_the_program(order: dict[str, Any], processes: int) -> None:
    """Never returns. In namespaces the program's parent is process 1: everything in them ends when that ends."""
    try:
        _libc.prctl(_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if order["namespaces"]:
            _arrange_files(order["folder"], order["disk_bytes"])
            if child := os.fork():
                os.close(order["status"])
                os._exit(_ended(child))
        os.chdir(order["folder"])
        Path("program.py").write_text(order["program"], "utf-8", errors="replace")
        Path("input").write_text(order["input"], "utf-8", errors="replace")
        os.dup2(os.open("input", os.O_RDONLY), 0)
        Path("input").unlink()
        os.dup2(os.open("/dev/null", os.O_WRONLY), 2)
        os.closerange(3, order["status"])
        os.closerange(order["status"] + 1, 1 << 16)
        os.set_inheritable(order["status"], False)  # it closes where the program begins
        _limit(order, processes)
        _refuse_calls(bytes.fromhex(order["filter"]))
        one_thread = dict.fromkeys(["OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"], "1")
        environment = {"PATH": "/usr/bin:/bin", "HOME": order["folder"]} | one_thread
        # here capabilities end
        os.execve(sys.executable, [sys.executable, "-I", "-X", "utf8", "program.py"], environment)
    except BaseException as error:
        os._exit(_not_isolated(order["status"], error))


def _not_isolated(status: int, error: BaseException) -> int:
    os.write(status, str(error).encode(errors="replace"))
    return NOT_ISOLATED


def _arrange_files(folder: str, size: int) -> None:
    """All files read-only but for an empty file system of ``size`` bytes on ``folder``.

    /proc shows our own processes only, /dev no device that has memory of its own, and /run, where the sockets of system
    services are, is empty.
    """
    _check(_libc.mount(None, b"/", None, _MS_PRIVATE, None), "mount /")
    _arrange_devices(folder)
    if _libc.mount(b"proc", b"/proc", b"proc", _NOSUID_NODEV, None):  # containers may forbid it
        _check(_libc.mount(b"tmpfs", b"/proc", b"tmpfs", _NOSUID_NODEV, None), "mount /proc")
    if Path("/run").is_dir():
        _check(_libc.mount(b"tmpfs", b"/run", b"tmpfs", _NOSUID_NODEV, b"size=4k"), "mount /run")
    Path(folder).mkdir(parents=True, exist_ok=True)  # where it was below /dev or /run
    attributes = (ctypes.c_uint64 * 4)(_RDONLY, 0, 0, 0)
    done = _libc.syscall(_MOUNT_SETATTR, _AT_FDCWD, b"/", _AT_RECURSIVE, attributes, ctypes.sizeof(attributes))
    _check(done, "mount_setattr")
    options = f"size={size},nr_inodes=10000,mode=0700".encode()
    _check(_libc.mount(b"tmpfs", folder.encode(), b"tmpfs", _NOSUID_NODEV, options), "mount the work folder")


def _arrange_devices(folder: str) -> None:
    """Leave in /dev what every program may need; ``folder`` is where it is put together."""
    _check(_libc.mount(b"tmpfs", folder.encode(), b"tmpfs", _NOSUID_NODEV, b"size=4k,mode=0755"), "mount devices")
    for device in filter(Path.exists, map(Path("/dev").joinpath, _DEVICES)):
        (place := Path(folder, device.name)).touch()
        _check(_libc.mount(bytes(device), bytes(place), None, _MS_BIND, None), f"mount {device}")
    Path(folder, "fd").symlink_to("/proc/self/fd")
    _check(_libc.mount(folder.encode(), b"/dev", None, _MS_MOVE, None), "mount /dev")


def _limit(order: dict[str, Any], processes: int) -> None:
    for kind, value in [
        (resource.RLIMIT_AS, order["memory_bytes"]),
        (resource.RLIMIT_CPU, order["cpu_seconds"]),
        (resource.RLIMIT_NPROC, processes),
        (resource.RLIMIT_FSIZE, order["disk_bytes"]),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_MEMLOCK, 0),
        (resource.RLIMIT_MSGQUEUE, 0),
    ]:
        resource.setrlimit(kind, (value, value))


class _Filter(ctypes.Structure):
    """``struct sock_fprog`` of linux/filter.h."""

    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def _refuse_calls(instructions: bytes) -> None:
    """From here on, for all that this process becomes and starts; without privileges gained by ``execve``."""
    _check(_libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0), "no new privileges")
    loaded = _Filter(len(instructions) // 8, instructions)
    _check(_libc.prctl(_SECCOMP, _FILTER, ctypes.byref(loaded)), "seccomp")


def end_descendants(spared: frozenset[int] = frozenset()) -> None:
    """Kill what this process is the last ancestor of, as their subreaper, but for ``spared`` and what these started.

    All of it is stopped first, for what still forks is never killed to its end.
    """
    deadline, stopped = time.monotonic() + 5, set[int]()
    while time.monotonic() < deadline and (left := _descendants(os.getpid(), spared)):
        signalled = signal.SIGKILL if left <= stopped else signal.SIGSTOP
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signalled)
            with suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
        stopped = left


def _descendants(pid: int, spared: frozenset[int]) -> set[int]:
    found = set[int]()
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            found |= {int(child) for child in (task / "children").read_text().split()}
    found -= spared
    return found.union(*(_descendants(child, spared) for child in found))


def _check(result: int, what: str) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


if __name__ == "__main__":
    sys.exit(main())
