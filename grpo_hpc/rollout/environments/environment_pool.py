"""The environments of a rank: a process for each episode, forked from one that has loaded the user's file.

:meth:`EnvironmentPool.start` comes before any model, so a file that cannot be loaded costs no time. All else is for an
asyncio loop.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from grpo_hpc.config import RunConfig
from grpo_hpc.errors import ConfigError, EnvironmentProblem
from grpo_hpc.rollout.environments.environment_process import EpisodeProcess, ProcessEnvironment
from grpo_hpc.rollout.environments.found_in_file import Kind, require_rewards
from grpo_hpc.rollout.environments.protocol import Environment, EpisodeFailed
from grpo_hpc.rollout.environments.zygote import START_SECONDS

_ANSWER_SECONDS = 30.0  # to fork or end a process takes milliseconds
_CLOSE_SECONDS = 5.0
_LONGEST_ANSWER = 2**16
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


class EnvironmentPool:
    """Makes environments, each in a process that may be killed.

    Args:
        environment: ``rollout.environment``, see :mod:`grpo_hpc.rollout.environments.found_in_file`.
        params: keyword arguments of its class.
        log: file for what environments print.
        timeout: seconds for one call.
        memory_gib: what a process may hold.
    """

    def __init__(
        self,
        environment: str,
        params: Mapping[str, Any] | None = None,
        *,
        log: Path,
        timeout: float = 60.0,
        memory_gib: float = 4.0,
    ) -> None:
        memory = int(memory_gib * 2**30)
        self._setup = {"environment": environment, "params": params or {}, "log": str(log), "memory_bytes": memory}
        self._timeout = timeout
        self._zygote: _Zygote | None = None
        self._numbers = 0
        self._asking = asyncio.Lock()
        self._asked_for = set[asyncio.Task[dict[str, Any]]]()

    def start(self) -> Kind:
        """Load the user's file, and say what it holds.

        Raises:
            ConfigError: it cannot be loaded.
            EnvironmentProblem: its process died.
        """
        if self._zygote is None:
            self._zygote = _Zygote(self._setup)
        return self._zygote.kind

    def new(self, name: str) -> Environment:
        """The environment of an episode, ``name`` in the log. Its process begins with its first call."""
        return ProcessEnvironment(self.process(name))

    def process(self, name: str) -> EpisodeProcess:
        """The same without a meaning of the calls."""
        return EpisodeProcess(_Episode(self, name), self._timeout)

    def close(self) -> None:
        """End all processes."""
        if self._zygote is not None:
            self._zygote.close()
            self._zygote = None

    async def fork(self, name: str) -> tuple[int, socket.socket]:
        """The number of a new process, and the trainer's end of its socket.

        Raises:
            EpisodeFailed: there is none to be had.
        """
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        self._numbers += 1
        number = self._numbers
        try:
            with theirs:
                answer = await self._ask({"fork": number, "name": name}, theirs)
            if "pid" not in answer:
                raise EpisodeFailed("killed", answer.get("refused", "the process that all environments come from died"))
        except BaseException:
            ours.close()
            self._request({"end": number, "gone": False}, None)  # nobody waits for it any more
            raise
        return number, ours

    async def end(self, number: int, gone: bool) -> str:
        """End a process; how it had ended by itself, if it had."""
        return str((await self._ask({"end": number, "gone": gone})).get("ended", "with all others"))

    async def _ask(self, request: dict[str, Any], given: socket.socket | None = None) -> dict[str, Any]:
        """The answer of the process that forks; none from one that died, and the next request starts another."""
        return await asyncio.shield(self._request(request, given and given.dup()))

    def _request(self, request: dict[str, Any], given: socket.socket | None) -> asyncio.Task[dict[str, Any]]:
        """Ask in a task of its own: an answer that nobody fetched would be taken for the next one's."""
        task = asyncio.get_running_loop().create_task(self._asked(request, given))
        self._asked_for.add(task)
        task.add_done_callback(self._asked_for.discard)
        return task

    async def _asked(self, request: dict[str, Any], given: socket.socket | None) -> dict[str, Any]:
        async with self._asking:
            try:
                if self._zygote is None and given is None:
                    return {}  # it has ended with all others
                if self._zygote is None:
                    self._zygote = await asyncio.to_thread(_Zygote, self._setup)
                async with asyncio.timeout(_ANSWER_SECONDS):
                    return await self._zygote.ask(request, given)
            except (OSError, TimeoutError, ValueError, ConfigError, EnvironmentProblem) as error:
                print(f"the process that environments are forked from is lost: {error}", file=sys.stderr, flush=True)
                self._lose()
                return {}
            finally:
                if given is not None:
                    given.close()

    def _lose(self) -> None:
        if self._zygote is not None:
            self._zygote.kill()
            self._zygote = None


def start_environments(cfg: RunConfig, log: Path) -> EnvironmentPool | None:
    """The environments of a run; made before any model, so that what is wrong with them costs no time.

    Args:
        log: file for what they print.

    Returns:
        None where completions are single turns.

    Raises:
        ConfigError: they cannot be loaded, or give no rewards where the run wants some.
        EnvironmentProblem: the process that loads them died.
    """
    roll = cfg.rollout
    if roll.environment is None:
        return None
    limits = {"timeout": roll.environment_timeout, "memory_gib": roll.environment_memory_gib}
    pool = EnvironmentPool(roll.environment, roll.environment_params, **limits, log=log)
    try:
        require_rewards(pool.start(), cfg.rewards.of_environment, turns=cfg.algorithm.turn_advantage_coef > 0)
    except BaseException:
        pool.close()
        raise
    return pool


class _Episode:
    """One process of a pool."""

    def __init__(self, pool: EnvironmentPool, name: str) -> None:
        self._pool, self._name, self._number = pool, name, 0

    async def connect(self) -> socket.socket:
        self._number, ours = await self._pool.fork(self._name)
        return ours

    async def end(self, gone: bool) -> str:
        return await self._pool.end(self._number, gone)


class _Zygote:
    """The process that forks. Made from any thread; waits until the user's file is loaded.

    Raises:
        ConfigError: the file cannot be loaded.
        EnvironmentProblem: the process died.
    """

    def __init__(self, setup: Mapping[str, Any]) -> None:
        _allow_many_files()
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._pids: dict[int, int] = {}
        with theirs:
            self._process = _spawn(theirs)
        try:
            ready = self._setup(setup)
        except BaseException:
            self.close()
            raise
        self.kind: Kind = ready["kind"]
        self._control.setblocking(False)
        if ready["threads"] > 1:
            text = f"{setup['environment']} starts threads while it is imported; processes of episodes do not have them"
            print(text, file=sys.stderr, flush=True)

    async def ask(self, request: dict[str, Any], given: socket.socket | None) -> dict[str, Any]:
        descriptors = [] if given is None else [given.fileno()]
        socket.send_fds(self._control, [json.dumps(request).encode()], descriptors)
        data = await asyncio.get_running_loop().sock_recv(self._control, _LONGEST_ANSWER)
        if not data:
            raise ConnectionResetError("it ended")
        answer: dict[str, Any] = json.loads(data)
        if "pid" in answer:
            self._pids[request["fork"]] = answer["pid"]
        self._pids.pop(request.get("end", 0), None)
        return answer

    def close(self) -> None:
        """End the process, which ends those of episodes first."""
        self._control.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_CLOSE_SECONDS)
        self.kill()

    def kill(self) -> None:
        """End the process now, and those of episodes where it has not done that."""
        self._control.close()
        for pid in [self._process.pid, *self._pids.values()] if self._process.poll() != 0 else []:
            with suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
        self._process.wait()

    def _setup(self, setup: Mapping[str, Any]) -> dict[str, Any]:
        self._control.settimeout(START_SECONDS)
        try:
            self._control.send(json.dumps(setup).encode())
            data = self._control.recv(_LONGEST_ANSWER)
        except TimeoutError:
            raise EnvironmentProblem(f"loading {setup['environment']} took more than {START_SECONDS} s") from None
        except OSError:
            data = b""
        if not data:
            hint = "Its messages are in the log of this process; the file may end it."
            raise EnvironmentProblem(f"the process that loads {setup['environment']} died", hint)
        ready: dict[str, Any] = json.loads(data)
        if "broken" in ready:
            raise ConfigError(ready["broken"], ready["hint"])
        return ready


def _spawn(control: socket.socket) -> subprocess.Popen[bytes]:
    root = str(Path(__file__).parents[3])
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    alone = {"PYTHONPATH": os.pathsep.join(paths), "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(
        [sys.executable, "-m", "grpo_hpc.rollout.environments.zygote", str(control.fileno())],
        pass_fds=(control.fileno(),),
        stdin=subprocess.DEVNULL,
        env=_ONE_THREAD | os.environ | alone | _past_proxies(),
        start_new_session=True,
    )


def _past_proxies() -> dict[str, str]:
    """Variables that let agents ask the policy, whose endpoint is on this machine, and no proxy."""
    known = [os.environ.get(name) for name in ("no_proxy", "NO_PROXY")]
    hosts = ",".join(dict.fromkeys(filter(None, [*known, "127.0.0.1"])))
    return {"no_proxy": hosts, "NO_PROXY": hosts}


def _allow_many_files() -> None:
    limit, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit != most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
