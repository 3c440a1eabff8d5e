"""What the directories of some runs hold, read once for everything that shows them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grpo_hpc.config.document import read_yaml
from grpo_hpc.errors import ConfigError, GrpoHpcError
from grpo_hpc.observe.history import History, Value
from grpo_hpc.observe.jsonl import parse
from grpo_hpc.runs.attempts import Attempt
from grpo_hpc.runs.records import damage
from grpo_hpc.runs.run_dir import RunDir
from grpo_hpc.runs.standing import Records, Standing, judged
from grpo_hpc.runs.sweep import Sweep, runs_at


@dataclass(frozen=True)
class RecordedRun:
    """One run.

    Attributes:
        label: its name, with as much of its path as tells it from the others.
        settings: the resolved run file, every value as YAML would be written, by dotted key.
        plan: ``plan.json``.
        environment: code, platform and packages by dotted name.
        damaged: what is wrong with records that were passed over.
    """

    label: str
    run_dir: RunDir
    standing: Standing
    history: History
    attempts: list[Attempt]
    settings: dict[str, str]
    plan: dict[str, Any]
    environment: dict[str, str]
    damaged: list[str]

    def course(self, metric: str) -> dict[int, Value]:
        """Value by step, in the order of the steps."""
        found = self.history.series(metric)
        return {step: found[step] for step in sorted(found)}


def read_runs(paths: Sequence[str]) -> tuple[list[RecordedRun], list[tuple[str, str]]]:
    """The runs at ``paths``, where a sweep stands for all of its runs; and path and reason of those that are damaged.

    Raises:
        ConfigError: a path is neither run nor sweep, or no run can be read.
    """
    asked = list({run.path: run for path in paths for run in runs_at(path)}.values())
    found: list[tuple[Records, dict[str, dict[str, Any]]]] = []
    damaged: list[tuple[str, str]] = []
    for run_dir in asked:
        try:
            found.append((Records.read(RunDir.open(run_dir.path)), _files(run_dir)))
        except (GrpoHpcError, OSError) as error:
            damaged.append((str(run_dir.path), " ".join(damage(run_dir.path, error).message.split())))
    stands = judged([records for records, _ in found])
    for (records, _), stand in zip(found, stands, strict=True):
        if isinstance(stand, GrpoHpcError):
            damaged.append((str(records.run_dir.path), " ".join(stand.message.split())))
    whole = [(stand, *one) for stand, one in zip(stands, found, strict=True) if isinstance(stand, Standing)]
    if not whole:
        raise ConfigError(damaged[0][1])
    labels = short_labels([Path(stand.run_dir) for stand, _, _ in whole])
    return [_recorded(label, *one) for label, one in zip(labels, whole, strict=True)], damaged


def sweep_keys(paths: Sequence[str]) -> list[str]:
    """The keys that the sweeps among ``paths`` vary."""
    return list(dict.fromkeys(key for path in paths if (sweep := Sweep.at(path)) for key in sweep.keys))


def short_labels(paths: Sequence[Path]) -> list[str]:
    """The last parts of ``paths``, as few as make them all different."""
    labels = [path.name for path in paths]
    for depth in range(2, max(len(path.parts) for path in paths) + 1):
        twice = {label for label, count in Counter(labels).items() if count > 1}
        longer = ["/".join(path.parts[-depth:]) for path in paths]
        labels = [long if label in twice else label for label, long in zip(labels, longer, strict=True)]
    return labels


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested mappings as one of dotted keys, their values as text."""
    found: dict[str, str] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and value:
            found |= flat(value, f"{name}.")
        else:
            found[name] = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return found


def _recorded(label: str, stand: Standing, records: Records, files: dict[str, dict[str, Any]]) -> RecordedRun:
    return RecordedRun(
        label,
        records.run_dir,
        stand,
        History.read(records.run_dir.metrics),
        records.attempts,
        flat(files["run file"]),
        files["plan"],
        flat(files["environment"]),
        records.damaged,
    )


def _files(run_dir: RunDir) -> dict[str, dict[str, Any]]:
    return {
        "run file": read_yaml(run_dir.run_file, "run file", "name: my-run").values,
        "plan": _mapping(run_dir.plan_file),
        "environment": _mapping(run_dir.lock_file),
    }


def _mapping(path: Path) -> dict[str, Any]:
    found = parse(path.read_bytes())
    if found is None:
        raise ConfigError(f"{path} is damaged: it holds no JSON object")
    return found
