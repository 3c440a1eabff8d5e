"""The sinks that a run names in ``logging.report_to``: TensorBoard, wandb and SwanLab.

Each package is imported when the run asks for it. API keys are the packages' own affair (WANDB_API_KEY,
SWANLAB_API_KEY or their login files): nothing here reads them, and the run directory holds none.
"""

from __future__ import annotations

import importlib
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from grpo_hpc.errors import EnvironmentProblem
from grpo_hpc.observe.sinks import Sink


@dataclass(frozen=True)
class Report:
    """What reporters are told about a run.

    Attributes:
        folder: the run directory; every reporter writes below it.
        config: the run file, shown beside the curves.
        projects, names: by reporter, the project and the run's name in it.
        offline: write files only; ``wandb sync`` and ``swanlab sync`` hand them in later.
    """

    folder: Path
    config: Mapping[str, Any] = field(default_factory=dict)
    projects: Mapping[str, str] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)
    offline: bool = False


class TensorBoard:
    """Event files in ``tensorboard/``."""

    def __init__(self, report: Report) -> None:
        self._make = _imported("tensorboard", "torch.utils.tensorboard").SummaryWriter
        self._folder = report.folder / "tensorboard"
        self._purge_step: int | None = None
        self._writer: Any = None

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Made at the first call, because a rewind may come before."""
        if self._writer is None:
            self._writer = self._make(str(self._folder), purge_step=self._purge_step)
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def rewind(self, step: int) -> None:
        """The files cannot be cut, so their reader is told to disregard the later points."""
        self._purge_step = step + 1 if step else 0

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


class Wandb:
    """A run of Weights & Biases, with its files in ``wandb/``; a resumed run goes on in the same one."""

    def __init__(self, report: Report) -> None:
        wandb = _imported("wandb")
        options = {"project": report.projects["wandb"], "name": report.names["wandb"], "config": dict(report.config)}
        mode = "offline" if report.offline else "online"
        settings = wandb.Settings(console="off")  # the run directory has the logs
        with _Starting("wandb", "WANDB_API_KEY"):
            self._run = wandb.init(
                **options,
                dir=str(report.folder),
                id=run_id(report.folder),
                resume="allow",
                mode=mode,
                settings=settings,
            )

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log(dict(metrics), step=step)

    def rewind(self, step: int) -> None:
        """Nothing: wandb keeps the first values of a step, and a resumed run makes the same ones again."""

    def close(self) -> None:
        self._run.finish()


class SwanLab:
    """A run of SwanLab, with its files in ``swanlog/``; a resumed run goes on in the same one."""

    def __init__(self, report: Report) -> None:
        swanlab = _imported("swanlab")
        options = {"project": report.projects["swanlab"], "name": report.names["swanlab"]}
        mode = "offline" if report.offline else "online"
        settings = swanlab.Settings(interactive=False, terminal={"proxy_type": "none"})  # no question, no copy of logs
        with _Starting("swanlab", "SWANLAB_API_KEY"):
            self._run = swanlab.init(
                **options,
                config=dict(report.config),
                log_dir=str(report.folder / "swanlog"),
                id=run_id(report.folder),
                resume="allow",
                mode=mode,
                settings=settings,
            )

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log(dict(metrics), step=step)

    def rewind(self, step: int) -> None:
        """Nothing: SwanLab keeps the first value of a step, and a resumed run makes the same one again."""

    def close(self) -> None:
        self._run.finish()


_REPORTERS: dict[str, Callable[[Report], Sink]] = {"tensorboard": TensorBoard, "wandb": Wandb, "swanlab": SwanLab}


def open_reporters(names: Sequence[str], report: Report) -> list[Sink]:
    """Start the reporters that ``names`` mean, in that order.

    Raises:
        EnvironmentProblem: a package is not installed, or its service cannot be reached or knows no API key.
    """
    return [_REPORTERS[name](report) for name in names]


def run_id(folder: Path) -> str:
    """The identity of the run with wandb and SwanLab: made once, then read from the file ``report_id``."""
    path = folder / "report_id"
    if not path.exists():
        path.write_text(secrets.token_hex(4) + "\n")
    return path.read_text().strip()


def _imported(name: str, module: str = "") -> Any:
    try:
        return importlib.import_module(module or name)
    except ModuleNotFoundError as error:
        text = f"logging.report_to names {name}, and the package {error.name} is not installed"
        raise EnvironmentProblem(text, f"Install it with: pip install {name}") from None


class _Starting:
    """Turns what a service's client raises at its start into a message for people."""

    def __init__(self, name: str, key: str) -> None:
        self._name, self._key = name, key

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Exception):
            raise EnvironmentProblem(
                f"{self._name} cannot start: {' '.join(str(error).split())}",
                f"Set {self._key} (jobs get it by way of `inherit` or `secrets` in the cluster profile), "
                "or set logging.report_offline: true and hand the files in later.",
            ) from error
