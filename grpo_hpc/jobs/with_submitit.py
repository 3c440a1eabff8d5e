"""The submitit executor: submitit queues the supervisor, which does the rest as under plain sbatch."""

from __future__ import annotations

import runpy
import shutil
import sys
from collections.abc import Sequence
from contextlib import chdir, redirect_stdout
from pathlib import Path
from typing import Any

from grpo_hpc.cluster.profile import Profile
from grpo_hpc.cluster.sbatch_options import read_options
from grpo_hpc.cluster.slurm import uninfluenced
from grpo_hpc.config.patterns import wall_seconds
from grpo_hpc.errors import EnvironmentProblem
from grpo_hpc.jobs.job_script import sbatch_options
from grpo_hpc.jobs.prepare import make_job
from grpo_hpc.runs.run_dir import RunDir

_PROGRAM = "grpo_hpc.jobs.supervise"


class Supervised:
    """What submitit pickles: a path, nothing that could go stale while the job waits or is requeued."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir

    def __call__(self) -> int:
        """Supervise one attempt; submitit calls this in the job.

        It is the program that ``job.sh`` starts, run in this process: the one that Slurm's signals reach.
        """
        sys.argv = [_PROGRAM, str(self.run_dir)]
        try:
            runpy.run_module(_PROGRAM, run_name="__main__", alter_sys=True)
        except SystemExit as end:
            if end.code:
                raise  # so that Slurm sees the job as failed
        return 0


def submit(run_dir: RunDir, profile: Profile, more: Sequence[str]) -> str:
    """Queue the run with submitit's AutoExecutor and return the number of the job.

    Raises:
        EnvironmentProblem: Slurm refused.
    """
    return _submit([run_dir], run_dir.path, parameters(run_dir, profile, more), profile.left_open)[0]


def submit_array(run_dirs: list[RunDir], folder: Path, profile: Profile, more: Sequence[str]) -> list[str]:
    """Queue all runs of a sweep as one array job and return the number of each task.

    Args:
        folder: the sweep's; the job is called like it.

    Raises:
        EnvironmentProblem: Slurm refused.
    """
    options = {**parameters(run_dirs[0], profile, more), "name": folder.name}
    return _submit(run_dirs, folder, options, profile.left_open)


def _submit(run_dirs: list[RunDir], folder: Path, options: dict[str, Any], left_open: list[str]) -> list[str]:
    import submitit
    from submitit.core.utils import FailedJobError

    if shutil.which("srun") is None:  # submitit looks for it, and has an error of its own kind
        raise EnvironmentProblem("srun is not installed here", "Submit from a login node, or use executor=local.")
    executor = submitit.AutoExecutor(folder=folder / "submitit", cluster="slurm")
    executor.update_parameters(**options)
    try:
        with chdir(folder), redirect_stdout(sys.stderr), uninfluenced(left_open):
            if len(run_dirs) == 1:
                return [str(executor.submit(Supervised(run_dirs[0].path)).job_id)]
            with executor.batch():
                jobs = [executor.submit(Supervised(run_dir.path)) for run_dir in run_dirs]
            return [str(job.job_id) for job in jobs]
    except (FailedJobError, FileNotFoundError) as error:
        raise EnvironmentProblem(f"submitit could not queue the run: {' '.join(str(error).split())}") from None


def parameters(run_dir: RunDir, profile: Profile, more: Sequence[str]) -> dict[str, Any]:
    """The options of sbatch, those of the run and ``more``, in submitit's words."""
    options = [*sbatch_options(make_job(run_dir.config(), profile)), *more]
    given = read_options(options)
    own = {"job-name", "nodes", "ntasks-per-node", "time", "signal", "output", "open-mode", "requeue", "no-requeue"}
    others: dict[str, Any] = {name: value or True for name, value in given.items() if name not in own}
    others["requeue" if profile.requeue else "no-requeue"] = True
    return {
        "name": given["job-name"],
        "nodes": int(given["nodes"]),
        "tasks_per_node": 1,
        "timeout_min": -(-wall_seconds(str(profile.time_limit)) // 60),
        "slurm_signal_delay_s": profile.save_before_s,
        # one supervisor on the first node; the GPUs are for the steps that it starts
        "slurm_srun_args": ["--nodes=1", "--ntasks=1", "--overlap", "--gres=none", "--export=ALL"],
        "slurm_additional_parameters": others,
    }
