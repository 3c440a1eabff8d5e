"""What a folder of runs holds: runs, and what is no run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grpo_hpc.config import RunConfig
from grpo_hpc.errors import ConfigError, GrpoHpcError, of_system
from grpo_hpc.runs.run_dir import RunDir
from grpo_hpc.runs.standing import LIVE, Records, Standing, judged
from grpo_hpc.runs.sweep import Sweep

DEFAULT_FOLDER: str = RunConfig.model_fields["output_dir"].default


@dataclass(frozen=True)
class Overview:
    """The runs of a folder.

    Attributes:
        runs: by name.
        sweeps: the runs of each sweep, by the folder's name.
        foreign: path and reason of everything else that lies there.
    """

    folder: str
    runs: list[Standing]
    sweeps: dict[str, list[Standing]]
    foreign: list[tuple[str, str]]

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe; what ``--json`` prints."""
        return {
            "folder": self.folder,
            "runs": [run.to_dict() for run in self.runs],
            "sweeps": {name: [run.to_dict() for run in runs] for name, runs in self.sweeps.items()},
            "passed_over": [{"path": path, "reason": reason} for path, reason in self.foreign],
        }


def overview(folder: str | Path) -> Overview:
    """Everything in ``folder``; a damaged run is named among what is none.

    Raises:
        ConfigError: there is no such folder, or it is itself a run.
    """
    path = Path(folder).absolute()
    if Sweep.at(path):
        raise ConfigError(f"{folder} is a sweep, not a folder of runs", f"Look at it: grpo-hpc status {folder}.")
    if (path / "run.yaml").is_file():
        raise ConfigError(f"{folder} is a run, not a folder of runs", f"Look at it with `grpo-hpc status {folder}`.")
    if not path.is_dir():
        raise ConfigError(f"there is no folder {folder}", "Runs lie in the folder that output_dir of a run file names.")
    entries = sorted(entry for entry in path.iterdir() if not entry.name.startswith("."))
    sweeps = {entry.name: [run.path for run in sweep.runs] for entry in entries if (sweep := _sweep(entry))}
    records, foreign = _read([entry for entry in entries if entry.name not in sweeps])
    groups = {}
    for name, points in sweeps.items():
        groups[name], damaged = _read(points)
        foreign += damaged
    found = _standings([*records, *(run for group in groups.values() for run in group)], foreign)
    runs = _known(records, found)
    return Overview(str(path), runs, {name: _known(group, found) for name, group in groups.items()}, foreign)


def _standings(records: Sequence[Records], foreign: list[tuple[str, str]]) -> dict[Path, Standing]:
    """How runs stand, by their path; those whose files cannot be read are added to ``foreign``."""
    found = {record.run_dir.path: facts for record, facts in zip(records, judged(records), strict=True)}
    foreign += [(str(path), _line(facts)) for path, facts in found.items() if isinstance(facts, GrpoHpcError)]
    return {path: facts for path, facts in found.items() if isinstance(facts, Standing)}


def _known(records: Sequence[Records], found: dict[Path, Standing]) -> list[Standing]:
    return [found[record.run_dir.path] for record in records if record.run_dir.path in found]


@dataclass(frozen=True)
class Comparison:
    """The runs of a sweep side by side.

    Attributes:
        values: of each run, by key; in the order of ``runs``.
        damaged: path and reason of points that cannot be read.
    """

    folder: str
    keys: list[str]
    values: list[dict[str, Any]]
    runs: list[Standing]
    damaged: list[tuple[str, str]]

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe; what ``--json`` prints."""
        pairs = zip(self.values, self.runs, strict=True)
        points = [{"values": values, **run.to_dict()} for values, run in pairs]
        damaged = [{"path": path, "reason": reason} for path, reason in self.damaged]
        return {"folder": self.folder, "keys": self.keys, "points": points, "damaged": damaged}


def comparison(sweep: Sweep) -> Comparison:
    """How the runs of a sweep stand."""
    records, damaged = _read([run.path for run in sweep.runs])
    found = _standings(records, damaged)
    of = {sweep.path / name: values for name, values in zip(sweep.names, sweep.values, strict=True)}
    values = [of[path] for path in found]
    return Comparison(str(sweep.path), sweep.keys, values, list(found.values()), damaged)


def _read(paths: Sequence[Path]) -> tuple[list[Records], list[tuple[str, str]]]:
    """The records of those that are runs, and path and reason of the others."""
    records: list[Records] = []
    foreign: list[tuple[str, str]] = []
    for path in paths:
        try:
            if Sweep.at(path):
                foreign.append((str(path), "a sweep in a sweep"))
            elif (path / "run.yaml").is_file():
                records.append(Records.read(RunDir(path)))
            else:
                foreign.append((str(path), "no run"))
        except (GrpoHpcError, OSError) as error:
            foreign.append((str(path), _line(error)))
    return records, foreign


def _line(error: GrpoHpcError | OSError) -> str:
    return " ".join((of_system(error) if isinstance(error, OSError) else error).message.split())


def _sweep(path: Path) -> Sweep | None:
    try:
        return Sweep.at(path)
    except (GrpoHpcError, OSError):
        return None


def present_runs(folder: str | Path = DEFAULT_FOLDER) -> list[Standing]:
    """What somebody means who names no run: everything that waits or runs in ``folder``, else what changed last there.

    Raises:
        ConfigError: there is no run.
    """
    seen = overview(folder) if Path(folder).is_dir() else None
    found = [*seen.runs, *(run for group in seen.sweeps.values() for run in group)] if seen else []
    if not found:
        raise ConfigError(f"there is no run in ./{folder}", "Name a run directory: grpo-hpc status RUN_DIR")
    return [run for run in found if run.state in LIVE] or [max(found, key=lambda run: run.changed)]
