"""The vLLM servers of an attempt, seen by its supervisor: started first, awaited, watched, and ended last.

Supervisor, servers and trainer share the folder of the attempt, and nothing else: the key lies there before a server
starts, each server writes its address there, and ``servers.json`` appears when all of them answer.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import ProxyHandler, Request, build_opener

from grpo_hpc.files import write_atomically
from grpo_hpc.jobs.serving.node_servers import END
from grpo_hpc.jobs.steps import Steps, wait
from grpo_hpc.redaction import keep_secret
from grpo_hpc.runs.log_ends import ends_of
from grpo_hpc.runs.run_dir import RunDir

_END_S = 20
_ANSWER_S = 5


@dataclass(frozen=True)
class ServerStep:
    """The servers' step and what it writes."""

    folder: Path
    count: int
    process: subprocess.Popen[bytes]

    def failure(self) -> str | None:
        """Why they cannot be used any more; None while all of them run."""
        code, log = self.process.poll(), self.folder / "servers.log"
        said = ends_of(log)
        if own := re.search(r"^server \d+ on .* ended: .*", said, re.MULTILINE):
            return own[0]  # said before Slurm has ended the step on the other nodes
        if code is None:
            return None
        lines = [line.strip() for line in said.splitlines() if line.strip()]
        return f"the servers' step ended with exit code {code}" + (f"; {lines[-1][:300]}" if lines else "")

    def await_ready(self, limit_s: float, until: Callable[[], object]) -> str | None:
        """Wait until all answer, then write ``servers.json``.

        Args:
            until: gives up as soon as this is true; the caller knows why.

        Returns:
            why they are of no use; None when they are ready, or when ``until`` came true.
        """
        deadline = time.monotonic() + limit_s
        missing = "no address of a server is known"
        while not until():
            if failed := self.failure():
                return failed
            places = [json.loads(path.read_text()) for path in self._addresses()]
            problems = [f"{place['url']} {said}" for place in places if (said := self._ask(place["url"]))]
            if len(places) == self.count and not problems:
                write_atomically(RunDir.servers_file(self.folder), json.dumps({"servers": places}, indent=2) + "\n")
                return None
            missing = problems[0] if problems else f"{len(places)} of {self.count} servers have an address"
            if time.monotonic() > deadline:
                return f"after {limit_s:g} s (vllm_server_timeout) the servers are not ready: {missing}"
            time.sleep(1)
        return None

    def _addresses(self) -> list[Path]:
        return sorted((self.folder / "servers").glob("*.json"), key=lambda path: int(path.stem))

    def _ask(self, url: str) -> str | None:
        """What is wrong with a server; None when it is healthy and takes our key, so that it is ours."""
        key = keep_secret(RunDir.api_key(self.folder).read_text())
        for path in ("/health", "/v1/models"):
            request = Request(url + path, headers={"Authorization": f"Bearer {key}"})
            try:
                # nodes of one job talk to each other directly, whatever proxy leads out of the cluster
                build_opener(ProxyHandler({})).open(request, timeout=_ANSWER_S).close()
            except HTTPError as error:
                return f"answers {error.code} to {path}"
            except (URLError, OSError) as error:
                return f"does not answer: {getattr(error, 'reason', error)}"
        return None


@contextmanager
def serving(steps: Steps, folder: Path, hurry: Callable[[], object] = lambda: False) -> Iterator[ServerStep]:
    """The servers of the attempt in ``folder``; all of them are ended, and their key is removed, with the context.

    Args:
        hurry: as soon as this is true, servers that do not end by themselves are killed.
    """
    place, key = folder / "servers", RunDir.api_key(folder)
    place.mkdir()
    try:
        with os.fdopen(os.open(key, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_urlsafe(32))
        with steps.start("serve", folder / "servers.log") as process:
            try:
                yield ServerStep(folder, len(steps.run_dir.planned_servers()), process)
            finally:
                (place / END).touch()
                wait(process, _END_S, hurry)
    finally:
        key.unlink(missing_ok=True)
