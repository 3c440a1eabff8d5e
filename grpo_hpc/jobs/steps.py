"""The steps of a run's script, as children of the supervisor."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from grpo_hpc.cluster.slurm import Allocation
from grpo_hpc.jobs.ports import claimed_port, job_ports
from grpo_hpc.jobs.prepare import stored_profile
from grpo_hpc.runs.run_dir import RunDir

_POLL_S = 0.2
_CLEAN_S = 120
_TERMINATE_S = 3


@dataclass(frozen=True)
class Steps:
    """Starts steps of ``run_dir/job.sh`` inside ``allocation``, each in the environment ``env``."""

    run_dir: RunDir
    allocation: Allocation
    env: Mapping[str, str]

    @contextmanager
    def start(self, name: str, log: Path) -> Iterator[subprocess.Popen[bytes]]:
        """The process of a step, which has a port of its own; what still runs when the context ends is killed."""
        with claimed_port(job_ports(self.allocation.number)) as port, log.open("ab") as out:
            process = subprocess.Popen(
                ["bash", str(self.run_dir.job_script), name],
                env={**self.env, "MASTER_ADDR": self.allocation.nodes[0], "MASTER_PORT": str(port)},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
            )
            try:
                yield process
            finally:
                if process.poll() is None:
                    process.terminate()  # srun kills its step on every node
                    if wait(process, _TERMINATE_S) is None:  # and waits for Slurm, which may be about to kill us, too
                        process.kill()
                        process.wait()

    def clean(self) -> None:
        """Remove containers of this job that outlived their step, with runtimes where that happens."""
        if stored_profile(self.run_dir).runtime in ("docker", "podman"):
            command = ["bash", str(self.run_dir.job_script), "clean"]
            subprocess.run(command, env=self.env, stdin=subprocess.DEVNULL, timeout=_CLEAN_S, check=False)


def wait(
    process: subprocess.Popen[bytes], limit_s: float | None = None, until: Callable[[], object] = lambda: False
) -> int | None:
    """The exit code of ``process``; None when ``limit_s`` seconds passed, or ``until`` came true, before it ended."""
    deadline = time.monotonic() + limit_s if limit_s is not None else None
    while (code := process.poll()) is None:
        if (deadline is not None and time.monotonic() > deadline) or until():
            return None
        time.sleep(_POLL_S)
    return code
