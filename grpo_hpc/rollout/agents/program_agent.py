"""A program of any kind as an agent: a class that says how it is started.

    class Agent(ProgramAgent):
        command = ["/home/me/agent", "--steps", "5"]

The program gets the row as JSON on standard input, and the endpoint in ``OPENAI_BASE_URL`` and ``OPENAI_API_KEY``,
where OpenAI's client libraries look for them. The last line that it writes to standard output says what came of it:
``{"reward": 0.5}``, with ``counts`` if it likes; without such a line there is no reward. All other output goes to the
log.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import IO, Any

from grpo_hpc.data.rows import Row
from grpo_hpc.errors import ConfigError
from grpo_hpc.rollout.agents.agent import Outcome, outcome_of
from grpo_hpc.rollout.environments.protocol import EpisodeFailed

_LONGEST_LINE = 1 << 16


class ProgramAgent:
    """Runs its ``command``, program and arguments, for a row; in a process that may be killed, for it waits.

    Raises:
        ConfigError: where a class is made from it, the program is not there.
    """

    command: Sequence[str] = ()

    def __init_subclass__(cls) -> None:
        if not cls.command or shutil.which(cls.command[0]) is None:
            text = f"{cls.__name__}.command is {list(cls.command)}: there is no such program here"
            raise ConfigError(text, "Its first text is a path, or a name in PATH, of a file that may be run.")

    async def run(self, row: Row, base_url: str, key: str) -> Outcome:
        """One episode; see :class:`grpo_hpc.rollout.agents.agent.Agent`."""
        variables = os.environ | {"OPENAI_BASE_URL": base_url, "OPENAI_API_KEY": key}
        with tempfile.TemporaryFile() as file:  # no pipe, which somebody would have to fill
            file.write(json.dumps(asdict(row), default=str).encode())
            file.seek(0)
            program = subprocess.Popen(self.command, stdin=file, stdout=subprocess.PIPE, env=variables)
        assert program.stdout is not None
        last = _last_of(program.stdout)
        if code := program.wait():
            how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
            raise EpisodeFailed("killed" if code < 0 else "error", f"{self.command[0]} {how}")
        return _outcome(last)


def _last_of(lines: IO[bytes]) -> bytes:
    """The last line; those before it go where this process prints."""
    kept = deque[bytes](maxlen=1)
    for line in iter(lambda: lines.readline(_LONGEST_LINE), b""):
        _print(kept)
        kept.append(line)
    return kept[0] if kept else b""


def _print(lines: Iterable[bytes]) -> None:
    for line in lines:
        sys.stdout.buffer.write(line)
        sys.stdout.buffer.flush()


def _outcome(line: bytes) -> Outcome:
    told = _object(line)
    if told.keys() & {"reward", "counts"}:
        return outcome_of(told)
    _print([line])
    return Outcome()


def _object(line: bytes) -> dict[str, Any]:
    try:
        told = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return told if isinstance(told, dict) else {}
