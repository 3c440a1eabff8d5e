"""One run for every combination of some values: a folder with a run directory for each, and ``sweep.json``.

    submit RUN --sweep optimizer.lr=1e-6,3e-6 --sweep algorithm.beta=0,0.04     ->  4 runs

sweep.json          keys, and the values of every point; written last
job.sh              the array job, on a cluster
NAME-0, NAME-1...   run directories like any other: each is looked at, resumed and requeued by itself
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import combinations, product
from pathlib import Path
from typing import Any, TypeVar

from grpo_hpc.config import RunConfig, dump_run, load_run
from grpo_hpc.config.plain_yaml import parse_value
from grpo_hpc.config.sections import SECTION_OF
from grpo_hpc.errors import ConfigError, GrpoHpcError
from grpo_hpc.files import read_text, write_atomically
from grpo_hpc.redaction import redacted
from grpo_hpc.runs.run_dir import RunDir

FILE = "sweep.json"
_LARGEST = 2**24  # bytes
_FIXED = {
    "name": "The sweep itself names its runs: NAME-0, NAME-1, ...",
    "output_dir": "All runs of a sweep lie in one folder.",
    "cluster.profile": "All runs of a sweep go to one cluster.",
    "cluster.executor": "All runs of a sweep are started in the same way.",
}
Result = TypeVar("Result")


@dataclass(frozen=True)
class Point:
    """One combination.

    Attributes:
        values: by key, as they were given.
        cfg: the run; its ``output_dir`` is the folder of the sweep.
    """

    values: dict[str, Any]
    cfg: RunConfig

    def __str__(self) -> str:
        return " ".join(f"{key}={show_value(value)}" for key, value in self.values.items())


@dataclass(frozen=True)
class Sweep:
    """A sweep that was written.

    Attributes:
        keys: what differs between the points.
        names: folders of the runs, in the order of the array's indices.
        values: of each point, in the same order.
    """

    path: Path
    keys: list[str]
    names: list[str]
    values: list[dict[str, Any]]

    @property
    def job_script(self) -> Path:
        """The array job."""
        return self.path / "job.sh"

    @property
    def runs(self) -> list[RunDir]:
        """The run directories."""
        return [RunDir(self.path / name) for name in self.names]

    @classmethod
    def at(cls, path: str | Path) -> Sweep | None:
        """The sweep in a folder; None when there is none.

        Raises:
            ConfigError: its file is damaged.
        """
        folder = Path(path).absolute()
        if not (folder / FILE).is_file():
            return None
        try:
            found = json.loads(read_text(folder / FILE, _LARGEST))
            points = found["points"]
            values = [{key: point["values"][key] for key in found["keys"]} for point in points]
            names = [str(point["run"]) for point in points]
            if outside := [name for name in names if Path(name).name != name or name in ("", "..")]:
                raise ValueError(f"{outside[0]!r} is no folder of it")
            return cls(folder, [str(key) for key in found["keys"]], names, values)
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
            raise ConfigError(f"{folder / FILE} is damaged: {type(error).__name__}: {error}") from None


def runs_at(path: str) -> list[RunDir]:
    """The run in ``path``, or all runs of the sweep there.

    Raises:
        ConfigError: there is neither.
    """
    sweep = Sweep.at(path)
    return sweep.runs if sweep else [RunDir.open(path)]


def one_run_at(path: str) -> RunDir:
    """The run in ``path``.

    Raises:
        ConfigError: there is none, or a whole sweep.
    """
    if sweep := Sweep.at(path):
        raise ConfigError(f"{path} is a sweep; name one of its runs", f"They are {', '.join(sweep.names)}.")
    return RunDir.open(path)


def make_points(run: str, overrides: Sequence[str], sweeps: Sequence[str]) -> list[Point]:
    """Every combination of the values of ``sweeps``, each checked; nothing is written.

    Args:
        run: the run file.
        overrides: KEY=VALUE, the same for all points.
        sweeps: KEY=VALUE,VALUE,... The last key varies fastest.

    Raises:
        ConfigError: a sweep is no sweep, or a point is no run; says which.
    """
    axes = dict(_parse(sweep) for sweep in sweeps)
    taken = [_full(text.partition("=")[0].strip()) for text in [*overrides, *sweeps]]
    if twice := next((key for key in taken if taken.count(key) > 1), None):
        raise ConfigError(f"{twice} is given twice", "Give every key one list of values, and no value beside it.")
    points: list[Point] = []
    for index, combination in enumerate(product(*axes.values())):
        values = dict(zip(axes, combination, strict=True))
        own = [f"{key}={show_value(value)}" for key, value in values.items()]
        with naming(" ".join(own)):
            cfg = load_run(run, [*overrides, *own])
        place = {"name": f"{cfg.name}-{index}", "output_dir": str(RunDir.of(cfg).path)}
        points.append(Point(values, cfg.model_copy(update=place)))
    _require_different(points)
    return points


def for_each(points: Sequence[Point], check: Callable[[RunConfig], Result]) -> list[Result]:
    """What ``check`` finds for every point; an error names the point."""
    found = []
    for point in points:
        with naming(str(point)):
            found.append(check(point.cfg))
    return found


@contextmanager
def naming(point: str) -> Iterator[None]:
    """Errors inside say which point they are about."""
    try:
        yield
    except GrpoHpcError as error:
        raise type(error)(f"the point {redacted(point)}: {error.message}", error.hint) from None


def write_sweep(folder: Path, points: Sequence[Point]) -> Sweep:
    """Write sweep.json, once all run directories are there."""
    entries = [{"run": point.cfg.name, "values": point.values} for point in points]
    text = json.dumps({"keys": list(points[0].values), "points": entries}, indent=2, ensure_ascii=False)
    write_atomically(folder / FILE, text + "\n")
    return Sweep(folder, list(points[0].values), [p.cfg.name for p in points], [p.values for p in points])


def show_value(value: Any) -> str:
    """A value as it can be written in an override, which is read as YAML."""
    return value if isinstance(value, str) and _plain(value) else json.dumps(value, ensure_ascii=False)


def _parse(text: str) -> tuple[str, list[Any]]:
    """Key and values of one sweep; commas inside of brackets or quotes belong to a value."""
    key, equals, listed = text.partition("=")
    key = key.strip()
    if not equals or not key:
        raise ConfigError(f"'{text}' is no sweep", "Write KEY=VALUE,VALUE,... as in optimizer.lr=1e-6,3e-6")
    if _full(key) in _FIXED:
        raise ConfigError(f"{key} cannot be swept", _FIXED[_full(key)])
    try:
        values = parse_value(f"[{listed}]")
    except ValueError as error:
        raise ConfigError(f"the values of the sweep '{text}' are not YAML: {error}") from None
    if not isinstance(values, list) or not values or any(value is None and "null" not in listed for value in values):
        raise ConfigError(f"the sweep '{text}' lacks a value", "Write KEY=VALUE,VALUE,... as in optimizer.lr=1e-6,3e-6")
    return key, values


def _plain(value: str) -> bool:
    try:
        return bool(parse_value(value) == value)
    except ValueError:
        return False


def _full(key: str) -> str:
    section = SECTION_OF.get(key, "")
    return f"{section}.{key}" if section else key


def _require_different(points: Sequence[Point]) -> None:
    resolved = [(point, dump_run(point.cfg.model_copy(update={"name": "x"}))) for point in points]
    for (one, text), (other, again) in combinations(resolved, 2):
        if text == again:
            raise ConfigError(f"two points are the same run: {one} and {other}", "Leave one of them out.")
