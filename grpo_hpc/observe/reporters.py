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

import numpy as np

from grpo_hpc.errors import EnvironmentProblem
from grpo_hpc.observe.jsonl import json_text
from grpo_hpc.observe.sinks import Sink


@dataclass(frozen=True)
class Report:
    """What reporters are told about a run.

    Attributes:
        folder: the run directory; every reporter writes below it.
        config: the run file and figures of the plan, shown beside the curves.
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
        self._folder, self._config = report.folder / "tensorboard", dict(report.config)
        self._purge_step: int | None = None
        self._writer: Any = None

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self._opened().add_scalar(name, value, step)
        self._opened().flush()

    def completions(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        self._opened().add_text("completions", "\n\n".join(map(_as_markdown, rows)), step)

    def picture(self, step: int, name: str, pixels: np.ndarray, caption: str) -> None:
        self._opened().add_image(name, pixels, step, dataformats="HWC")
        self._opened().add_text(name, caption, step)

    def rewind(self, step: int) -> None:
        """The files cannot be cut, so their reader is told to disregard the later points."""
        self._purge_step = step + 1 if step else 0

    def _opened(self) -> Any:
        """Made at the first call, because a rewind may come before."""
        if self._writer is None:
            self._writer = self._make(str(self._folder), purge_step=self._purge_step)
            self._writer.add_text("config", _as_code(json_text(self._config, indent=2)), self._purge_step or 0)
        return self._writer

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


class Wandb:
    """A run of Weights & Biases, with its files in ``wandb/``; a resumed run goes on in the same one."""

    def __init__(self, report: Report) -> None:
        self._wandb = wandb = _imported("wandb")
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

    def completions(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """A table. It comes before the step's metrics, as wandb wants steps in order."""
        table = self._wandb.Table(
            columns=list(_COLUMNS), data=[[take(row) for take in _COLUMNS.values()] for row in rows]
        )
        self._run.log({"completions": table}, step=step)

    def picture(self, step: int, name: str, pixels: np.ndarray, caption: str) -> None:
        self._run.log({name: self._wandb.Image(pixels, caption=caption)}, step=step)

    def rewind(self, step: int) -> None:
        """Nothing: wandb keeps the first values of a step, and a resumed run makes the same ones again."""

    def close(self) -> None:
        self._run.finish()


class SwanLab:
    """A run of SwanLab, with its files in ``swanlog/``; a resumed run goes on in the same one."""

    def __init__(self, report: Report) -> None:
        self._swanlab = swanlab = _imported("swanlab")
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

    def completions(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Texts below each other, as it has no tables."""
        self._run.log({"completions": [self._swanlab.Text(_as_markdown(row)) for row in rows]}, step=step)

    def picture(self, step: int, name: str, pixels: np.ndarray, caption: str) -> None:
        self._run.log({name: self._swanlab.Image(pixels, caption=caption)}, step=step)

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


_LONGEST = 4000  # characters of a text that a table holds


def _prompt(row: Mapping[str, Any]) -> str:
    messages = row.get("messages") or [{}]
    content = messages[-1].get("content", "")
    return (content if isinstance(content, str) else json_text(content))[:_LONGEST]


def _completion(row: Mapping[str, Any]) -> str:
    text = str(row["completion"])
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST // 2]}\n[...]\n{text[-_LONGEST // 2 :]}"


_COLUMNS: dict[str, Callable[[Mapping[str, Any]], Any]] = {
    "prompt": _prompt,
    "completion": _completion,
    "reward": lambda row: row.get("reward"),
    "advantage": lambda row: row.get("advantage"),
    "rewards": lambda row: json_text(row.get("rewards")),
    "tokens": lambda row: row.get("tokens"),
    "ended by": lambda row: row.get("finish_reason"),
}


def _as_markdown(row: Mapping[str, Any]) -> str:
    """A completion for whoever draws Markdown; what was written is code, which no sign of it ends."""
    figures = ", ".join(f"{name} {_COLUMNS[name](row)}" for name in ("reward", "advantage", "tokens", "ended by"))
    return f"{figures}\n\n{_as_code(_prompt(row))}\n\n---\n\n{_as_code(_completion(row))}"


def _as_code(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines())


def plan_figures(plan: Mapping[str, Any]) -> dict[str, Any]:
    """What is worth showing of a plan.json: its layout, its batches, and the estimates without their parts."""
    estimate = plan.get("estimate") or {}
    topology = {name: value for name, value in plan.get("topology", {}).items() if not isinstance(value, list | dict)}
    time, memory = estimate.get("time") or {}, estimate.get("memory") or {}
    expected = {"verdict": estimate.get("verdict"), "average_completion": estimate.get("average_completion")}
    expected |= {name: time.get(name) for name in ("step", "tokens_per_s_per_gpu", "mfu")}
    expected["peak"] = memory.get("peak")
    return {"topology": topology, "schedule": plan.get("schedule"), "model": plan.get("model"), "estimate": expected}


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
