"""Programs that want to do harm, really run: what becomes of them, and of what they went for."""

from __future__ import annotations

import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import pytest

from grpo_hpc.errors import EnvironmentProblem
from grpo_hpc.rewards.sandbox import Limits, require_isolation, run_program

BOTH = pytest.mark.parametrize("isolation", ["namespaces", "limits"])
SHORT = Limits(seconds=1.0, memory_bytes=256 << 20, processes=4, disk_bytes=1 << 20)


@pytest.fixture
def run(interpreter):
    return partial(run_program, interpreter=interpreter, limits=SHORT)


@pytest.fixture
def shared():
    """A folder that every user may write to; pytest's own are root's alone."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o777)
        yield Path(folder)


def living(mark: str) -> list[int]:
    """Processes that have ``mark`` among their arguments or in their environment."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            texts = [(folder / name).read_bytes() for name in ("cmdline", "environ", "comm")]
        except OSError:
            continue
        if any(mark.encode() in text for text in texts):
            found.append(int(folder.name))
    return found


def test_a_process_with_many_open_files_can_run_programs(run):
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, limits[1]), limits[1]))
    opened = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
    try:
        assert run("print(1)", isolation="limits").output == "1\n"
    finally:
        for file in opened:
            os.close(file)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@BOTH
def test_a_program_reads_and_writes(run, isolation):
    ran = run(
        "import sys\nprint(input()[::-1])\nprint('no', file=sys.stderr)\nsys.exit(3)", "abc\n", isolation=isolation
    )
    assert (ran.code, ran.output, ran.cut) == (3, "cba\n", False)
    assert run("open('own', 'w').write('x'); print(open('own').read())", isolation=isolation).output == "x\n"
    assert run("import os, signal; os.abort()", isolation=isolation).code > 128


@BOTH
@pytest.mark.parametrize("program", ["while True: pass", "import time; time.sleep(1000)", "input(); input()"])
def test_an_endless_program_is_ended(run, isolation, program):
    ran = run(
        f"import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n{program}", "one line", isolation=isolation
    )
    assert ran.code in ((1,) if "input" in program else (124, 128 + signal.SIGKILL, 128 + signal.SIGXCPU))


@BOTH
def test_memory_is_limited(run, isolation):
    ran = run("try:\n  x = bytearray(300 << 20)\nexcept MemoryError:\n  print('no memory')", isolation=isolation)
    assert ran.output == "no memory\n"


MIB = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = libc.shmat.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
block, big, held = bytes(1 << 20), 40 << 20, 0
"""
HOLDING = {
    "files without a name": """
for name in range(10):
    file = libc.memfd_create(b"x", 0)
    for _ in range(40): held += os.write(file, block) if file >= 0 else 0
""",
    "segments of System V": """
for _ in range(10):
    segment = libc.shmget(0, big, 0o1600)
    if segment >= 0:
        place = libc.shmat(segment, None, 0)
        ctypes.memset(place, 1, big)
        libc.shmdt(ctypes.c_void_p(place))
        held += big
        ended = libc.shmctl(segment, 0, None)
""",
    "queues of System V": """
message = ctypes.create_string_buffer(b"1", 8200)
for _ in range(1000):
    queue = libc.msgget(0, 0o600)
    if queue < 0: break
    while libc.msgsnd(queue, message, 8192, 0o4000) == 0: held += 8192
    libc.msgctl(queue, 0, None)
""",
    "semaphores of System V": """
for _ in range(10):
    found = libc.semget(0, 32000, 0o600)
    if found >= 0:
        held += 64 * 32000
        libc.semctl(found, 0, 0)
""",
    "queues of POSIX": """
queue = ctypes.CDLL("librt.so.1").mq_open(b"/grpo-hpc-test", 0o102, 0o600, None)
held = 10 * 8192 if queue >= 0 else 0
if held: ctypes.CDLL("librt.so.1").mq_unlink(b"/grpo-hpc-test")
""",
    "large pages that a pipe keeps": """
import struct
for _ in range(2):
    reads, writes = os.pipe()
    for _ in range(16):
        place = libc.mmap(None, 4 << 20, 3, 0x22, -1, 0)
        aligned = -(-place // (2 << 20)) * (2 << 20)
        libc.madvise(ctypes.c_void_p(aligned), ctypes.c_size_t(2 << 20), 14)
        ctypes.memset(aligned, 1, 4096)
        held += max(0, libc.vmsplice(writes, struct.pack("PN", aligned, 4096), ctypes.c_long(1), 2)) * 512
        libc.munmap(place, 4 << 20)
""",
    "rings of the kernel": """
held = 40 << 20 if libc.syscall(425, 8, ctypes.create_string_buffer(120)) >= 0 else 0
""",
    "buffers of sockets": """
import socket
ends = socket.socketpair()
before = ends[0].getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
    try: ends[0].setsockopt(socket.SOL_SOCKET, option, 2 * before)
    except OSError: continue
    held += before
""",
    "a file system in memory": """
os.mkdir("m")
if libc.unshare(0x10000000 | 0x00020000) == 0:
    held = 1 + libc.mount(b"tmpfs", os.path.abspath("m").encode(), b"tmpfs", 0, None)
""",
    "user namespaces": """
word = ctypes.c_uint64 * 8
clone = {"x86_64": 56, "aarch64": 220}[os.uname().machine]
for call in ((clone, 0x10000000 | 17, 0, 0, 0, 0), (435, word(0x10000000, 0, 0, 0, 17, 0, 0, 0), 64)):
    child = libc.syscall(*call)
    if child == 0: os._exit(0)
    held += child > 0
""",
}


@BOTH
@pytest.mark.parametrize("what", HOLDING)
def test_memory_that_no_process_maps_cannot_be_held(run, isolation, what):
    assert run(MIB + HOLDING[what] + "print(held)", isolation=isolation).output == "0\n"


@BOTH
def test_what_programs_need_is_left_to_them(interpreter, isolation):
    program = """
import asyncio, ctypes, multiprocessing, subprocess, sys, threading
said = []
(thread := threading.Thread(target=said.append, args=(1,))).start()
thread.join()
said.append(int(subprocess.run([sys.executable, "-c", "print(2)"], capture_output=True).stdout))
mine, theirs = multiprocessing.Pipe()
(child := multiprocessing.get_context("fork").Process(target=theirs.send, args=(3,))).start()
said.append(mine.recv())
child.join()
said.append(asyncio.run(asyncio.sleep(0.001, 4)))
said.append(ctypes.CFUNCTYPE(ctypes.c_int)(lambda: 5)())
said.append(len(open("/dev/zero", "rb").read(3) + open("/dev/urandom", "rb").read(3) + open("/dev/null", "rb").read(9)))
print(said)
"""
    ran = run_program(program, limits=Limits(seconds=30.0), isolation=isolation, interpreter=interpreter)
    assert ran.output == "[1, 2, 3, 4, 5, 6]\n"


def test_devices_that_have_memory_are_not_there(run):
    said = run("import os\nprint(sorted(os.listdir('/dev')))\nopen('/dev/null', 'w').write('x')")
    assert (said.code, said.output) == (0, "['fd', 'full', 'null', 'random', 'urandom', 'zero']\n")


def test_the_work_folder_may_lie_below_dev(run, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", "/dev/shm")
    assert run("open('own', 'w').write('x'); print(open('own').read())").output == "x\n"


@BOTH
def test_endless_output_is_cut(run, isolation):
    ran = run("while True: print('x' * 65536)", isolation=isolation)
    assert ran.cut and len(ran.output) == 1 << 20 and ran.code != 0


@BOTH
def test_files_cannot_grow_without_end(run, isolation):
    program = """
import signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
try:
    with open("own", "wb", buffering=0) as file:
        while True: file.write(bytes(1 << 16))
except OSError:
    import os
    print(os.path.getsize("own") <= 1 << 20)
"""
    assert run(program, isolation=isolation).output == "True\n"


@BOTH
def test_a_fork_bomb_ends(run, isolation):
    """In namespaces the number of processes is exact; without them it is counted with others of the same user."""
    program = """
import os, time
made = 0
try:
    while made < 1000:
        if os.fork() == 0:
            time.sleep(60)
        made += 1
except OSError:
    print(made, flush=True)
bomb = "x-fork-bomb"
while True:
    try: os.fork()
    except OSError: pass
"""
    ran = run(program.replace("x-fork-bomb", f"bomb-{isolation}"), isolation=isolation)
    assert int(ran.output.split()[0]) <= (3 if isolation == "namespaces" else 900)
    assert ran.code != 0
    assert descendants_are_gone()


def descendants_are_gone() -> bool:
    """Whether no program of a sandbox is left: they alone have this as their last argument."""
    deadline = time.monotonic() + 5
    while left := [pid for pid in living("program.py") if command(pid)[-1:] == [b"program.py"]]:
        if time.monotonic() > deadline:
            return not left
        time.sleep(0.02)
    return True


def command(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[:-1]
    except OSError:
        return []


@BOTH
def test_daemons_end_with_their_program(run, isolation):
    program = """
import os, time
for _ in range(2):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.close(1)
            time.sleep(1000)
        os._exit(0)
    os.wait()
print("left two behind")
"""
    ran = run(program, isolation=isolation)
    assert (ran.code, ran.output) == (0, "left two behind\n")
    assert descendants_are_gone()


@BOTH
def test_killing_the_parent(run, isolation):
    """Without namespaces the launcher is of the same user and dies; nothing waits for it for ever."""
    started = time.monotonic()
    ran = run("import os, time\nos.kill(os.getppid() or -1, 9)\ntime.sleep(1000)", isolation=isolation)
    assert ran.code != 0
    assert time.monotonic() - started < 60
    assert descendants_are_gone()


def test_a_child_that_outlives_a_killed_launcher_is_not_waited_for(interpreter):
    program = (
        "import os, time\nif os.fork() == 0:\n  os.kill(os.getppid(), 9)\n  time.sleep(1000)\nos.kill(os.getppid(), 9)"
    )
    ran = run_program(program, limits=SHORT, isolation="limits", interpreter=interpreter)
    assert ran.code != 0
    assert descendants_are_gone()


def test_files_outside_are_read_only(run, shared):
    targets = [str(shared / "x"), "/tmp/grpo-hpc-test-x", "/dev/shm/grpo-hpc-test-x", "/var/tmp/grpo-hpc-test-x"]
    program = f"""
for path in {targets}:
    try: open(path, "w"); print("written", path)
    except OSError as error: print(error.strerror)
"""
    assert set(run(program).output.splitlines()) == {"Read-only file system", "No such file or directory"}
    assert not any(Path(target).exists() for target in targets)


def test_namespaces_cannot_be_undone(run, shared):
    program = f"""
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
print(libc.umount2(b"/proc", 2), libc.mount(None, b"/", None, 32 | 4096, None))
libc.unshare(0x10000000 | 0x00020000)
print(libc.umount2(b"/proc", 2), libc.mount(None, b"/", None, 32 | 4096, None))
try: open("{shared}/x", "w")
except OSError: print("no")
"""
    assert run(program).output == "-1 -1\n-1 -1\nno\n"


def test_no_network_not_even_to_this_machine(run, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as abstract:
        abstract.bind(name := f"\0grpo-hpc-test-{os.getpid()}")
        abstract.listen()
        program = f"""
import socket
def attempt(*address):
    try: socket.socket(address[0]).connect(address[1]); print("connected")
    except OSError: print("no")
attempt(socket.AF_INET, ("127.0.0.1", {server.getsockname()[1]}))
attempt(socket.AF_UNIX, {name!r})
print([name for _, name in socket.if_nameindex()])
"""
        assert run(program).output == "no\nno\n['lo']\n"


def test_other_processes_are_not_seen(run):
    program = (
        "import os; print([name for name in os.listdir('/proc') if name.isdigit()], os.getpid(), os.listdir('/run'))"
    )
    assert run(program).output == "['1', '2'] 2 []\n"
    assert run("import os; print(sorted(os.environ))").output.count("OMP_NUM_THREADS") == 1
    assert run("import os; print('PYTEST_CURRENT_TEST' in os.environ)").output == "False\n"


@BOTH
@pytest.mark.parametrize("program", ["x = \x00", "\ud800", "(" * 100_000, "x = '''"])
def test_what_is_no_program_fails(run, isolation, program):
    assert run(program, isolation=isolation).code == 1


@BOTH
def test_nothing_lies_about_afterwards(run, isolation, shared, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(shared))
    assert run("import os; os.mkdir('a'); open('a/b', 'w'); print('done')", isolation=isolation).output == "done\n"
    assert list(shared.iterdir()) == []


@BOTH
def test_when_the_caller_dies_so_does_the_program(interpreter, isolation, shared):
    asks = f"""
from grpo_hpc.rewards.sandbox import Limits, run_program
run_program("import time; time.sleep(1000)", "", Limits(seconds=1000), {isolation!r}, {interpreter!r})
"""
    root = Path(__file__).parents[3]
    caller = subprocess.Popen([sys.executable, "-c", asks], cwd=root, env=os.environ | {"TMPDIR": str(shared)})
    deadline = time.monotonic() + 30
    while not any(command(pid)[-1:] == [b"program.py"] for pid in living("program.py")):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    caller.kill()
    caller.wait()
    assert descendants_are_gone()


def test_a_machine_without_isolation_is_known_at_the_start(interpreter, shared):
    require_isolation("namespaces", interpreter)
    forbids = shared / "python"  # as a kernel that forbids user namespaces answers
    forbids.write_text(
        "#!/bin/bash\nread -r order\nfd=${order##*'\"status\": '}\n"
        "eval \"echo 'unshare: Operation not permitted' >&${fd%%[,\\}]*}\"\nexit 125\n"
    )
    forbids.chmod(0o755)
    with pytest.raises(EnvironmentProblem, match="cannot be isolated here by namespaces") as caught:
        require_isolation("namespaces", str(forbids))
    assert "isolation: limits" in caught.value.hint


@pytest.mark.parametrize("path", ["/nowhere/python", "/etc/passwd"])
def test_an_interpreter_that_cannot_be_run(path):
    with pytest.raises(EnvironmentProblem, match=path):
        require_isolation("limits", path)
