"""What the directories of some runs hold, read once for everything that shows them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from grpo_hpc.config.document import read_yaml
from grpo_hpc.errors import ConfigError, GrpoHpcError
from grpo_hpc.files import read_text
from grpo_hpc.observe.history import History, Value
from grpo_hpc.observe.jsonl import parse
from grpo_hpc.report.planned_figures import PlannedFigures
from grpo_hpc.runs.attempts import Attempt
from grpo_hpc.runs.records import DAMAGE, damage
from grpo_hpc.runs.run_dir import RunDir
from grpo_hpc.runs.standing import Records, Standing, judged
from grpo_hpc.runs.sweep import Sweep, runs_at

_LARGEST = 64 << 20  # bytes of a record
Read = TypeVar("Read")


@dataclass(frozen=True)
class RecordedRun:
    """One run.

    Attributes:
        label: its name, with as much of its path as tells it from the others.
        settings: the resolved run file, every value as YAML would be written, by dotted key.
        planned: figures of the plan.
        environment: code, platform and packages by dotted name.
        damaged: what is wrong with records that were passed over.
    """

    label: str
    run_dir: RunDir
    standing: Standing
    history: History
    attempts: list[Attempt]
    settings: dict[str, str]
    planned: PlannedFigures
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
    found: list[tuple[Records, dict[str, str]]] = []
    damaged: list[tuple[str, str]] = []
    for run_dir in asked:
        try:
            found.append((Records.read(RunDir.open(run_dir.path)), _settings(run_dir)))
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


def _recorded(label: str, stand: Standing, records: Records, settings: dict[str, str]) -> RecordedRun:
    run_dir, damaged = records.run_dir, list(records.damaged)
    return RecordedRun(
        label,
        run_dir,
        stand,
        History.read(run_dir.metrics),
        records.attempts,
        settings,
        _read(run_dir.plan_file, PlannedFigures.of, PlannedFigures(), damaged),
        _read(run_dir.lock_file, flat, {}, damaged),
        damaged,
    )


def _settings(run_dir: RunDir) -> dict[str, str]:
    return flat(read_yaml(run_dir.run_file, "run file", "name: my-run").values)


def _read(path: Path, use: Callable[[dict[str, Any]], Read], without: Read, damaged: list[str]) -> Read:
    """What ``use`` makes of the object in a file; ``without`` where it is damaged, which is noted."""
    try:
        found = parse(read_text(path, _LARGEST).encode())
        if found is None:
            raise ConfigError(f"{path} is damaged: it holds no JSON object")
        return use(found)
    except DAMAGE as error:
        damaged.append(damage(path, error).message)
        return without
