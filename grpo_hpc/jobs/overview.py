"""What a folder of runs holds: runs, and what is no run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from grpo_hpc.config import RunConfig
from grpo_hpc.errors import ConfigError, GrpoHpcError
from grpo_hpc.jobs.run_dir import RunDir
from grpo_hpc.jobs.standing import LIVE, Records, Standing, standings

DEFAULT_FOLDER: str = RunConfig.model_fields["output_dir"].default


@dataclass(frozen=True)
class Overview:
    """The runs of a folder.

    Attributes:
        runs: by name.
        foreign: path and reason of everything else that lies there.
    """

    folder: str
    runs: list[Standing]
    foreign: list[tuple[str, str]]


def overview(folder: str | Path) -> Overview:
    """Everything in ``folder``; a damaged run is named among what is none.

    Raises:
        ConfigError: there is no such folder, or it is itself a run.
    """
    path = Path(folder).absolute()
    if (path / "run.yaml").is_file():
        raise ConfigError(f"{folder} is a run, not a folder of runs", f"Look at it with `grpo-hpc status {folder}`.")
    if not path.is_dir():
        raise ConfigError(f"there is no folder {folder}", "Runs lie in the folder that output_dir of a run file names.")
    runs: list[Records] = []
    foreign: list[tuple[str, str]] = []
    for entry in sorted(entry for entry in path.iterdir() if not entry.name.startswith(".")):
        try:
            runs.append(Records.read(RunDir.open(entry)))
        except GrpoHpcError as error:
            reason = "no run" if not (entry / "run.yaml").is_file() else " ".join(error.message.split())
            foreign.append((str(entry), reason))
    return Overview(str(path), standings(runs), foreign)


def present_runs(folder: str | Path = DEFAULT_FOLDER) -> list[Standing]:
    """What somebody means who names no run: everything that waits or runs in ``folder``, else what changed last there.

    Raises:
        ConfigError: there is no run.
    """
    found = overview(folder).runs if Path(folder).is_dir() else []
    if not found:
        raise ConfigError(f"there is no run in ./{folder}", "Name a run directory: grpo-hpc status RUN_DIR")
    return [run for run in found if run.state in LIVE] or [max(found, key=lambda run: run.changed)]
