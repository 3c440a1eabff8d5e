"""The run directory: every path of a run is named here, and every process of the run reads it.

run.yaml            the resolved run file, with absolute paths
.started.yaml       run.yaml as it was at the newest start, or when the directory was made: tells what changed since
plan.json           what was planned
lock.json           code, packages, platform and image
cluster.yaml        the cluster profile, complete
job.sh              the script that starts it
job.json            what was handed to the executor, and its numbers
attempt_K/          the K-th start: attempt.json, launcher.log, rank_R.log and more; `latest` links to the newest.
                    In server mode also servers.json with the servers' addresses, servers/api_key (0600), server_S.log
checkpoints/        training checkpoints
export/             Hugging Face folder
environments/       what environments printed, one file for each rank that plays episodes
completions/        every completion, one compressed file for each optimizer step that was the first to use some
metrics.jsonl events.jsonl
.cache/prompts/     data sets as tokens; may be deleted while the run does not run
tensorboard/ wandb/ swanlog/   what reporters write; report_id is the run's identity with wandb and SwanLab
stop                exists while somebody has asked the trainer to save and stop; its text says why
"""

from __future__ import annotations

import difflib
import json
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

from grpo_hpc.config import RunConfig, dump_run, load_run
from grpo_hpc.config.environment_name import with_absolute_file
from grpo_hpc.config.library import model_config
from grpo_hpc.config.sections import Rollout
from grpo_hpc.errors import ConfigError, EnvironmentProblem
from grpo_hpc.files import link_atomically, write_atomically
from grpo_hpc.rewards.names import with_file, with_paths
from grpo_hpc.runs.fingerprint import fingerprint


class PlanLike(Protocol):
    """What a run directory needs of a plan."""

    def to_dict(self) -> dict[str, object]: ...


class RunDir:
    """Names the paths of one run. Nothing is read or made until a method is called.

    Args:
        path: the directory; made absolute.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).absolute()
        self.run_file = self.path / "run.yaml"
        self.started_file = self.path / ".started.yaml"
        self.plan_file = self.path / "plan.json"
        self.lock_file = self.path / "lock.json"
        self.cluster_file = self.path / "cluster.yaml"
        self.job_script = self.path / "job.sh"
        self.job_file = self.path / "job.json"
        self.latest = self.path / "latest"
        self.checkpoints = self.path / "checkpoints"
        self.export = self.path / "export"
        self.metrics = self.path / "metrics.jsonl"
        self.events = self.path / "events.jsonl"
        self.prompts = self.path / ".cache" / "prompts"
        self.completions = self.path / "completions"
        self.tensorboard = self.path / "tensorboard"
        self.profile = self.path / "profile"
        self.stop = self.path / "stop"

    def __repr__(self) -> str:
        return f"RunDir({str(self.path)!r})"

    @classmethod
    def of(cls, cfg: RunConfig) -> RunDir:
        """Where the run that ``cfg`` describes belongs: ``output_dir/name``."""
        return cls(Path(cfg.output_dir) / cfg.name)

    @classmethod
    def create(
        cls,
        cfg: RunConfig,
        plan: PlanLike,
        files: Mapping[str, str] | None = None,
        move_away: Callable[[RunDir], None] | None = None,
    ) -> RunDir:
        """Make the directory of a new run with run.yaml, plan.json and lock.json; it appears complete or not at all.

        Args:
            files: names and texts of further files.
            move_away: called with an existing directory of that name first; absent: such a directory is an error.

        Raises:
            ConfigError: the directory exists already, or it is not known how long the run is.
            EnvironmentProblem: the directory cannot be written.
        """
        run_dir = cls.of(cfg)
        _ = cfg.batch.steps
        run_dir.require_free(fresh=move_away is not None)
        draft = run_dir.path.with_name(f".{run_dir.path.name}.{uuid4().hex[:8]}")
        try:
            draft.mkdir(parents=True)
            text = dump_run(with_absolute_paths(cfg))
            write_atomically(draft / run_dir.run_file.name, text)
            write_atomically(draft / run_dir.started_file.name, text)
            write_atomically(draft / run_dir.plan_file.name, _json(plan.to_dict()))
            write_atomically(draft / run_dir.lock_file.name, _json(fingerprint()))
            for name, text in (files or {}).items():
                write_atomically(draft / name, text)
            run_dir.make_room(move_away)
            draft.rename(run_dir.path)
        except OSError as error:
            run_dir.require_free(fresh=False)  # perhaps somebody else has just made it
            raise EnvironmentProblem(f"the run directory {run_dir.path} cannot be made: {error}") from None
        finally:
            shutil.rmtree(draft, ignore_errors=True)  # where it still has its own name
        return run_dir

    @classmethod
    def open(cls, path: str | Path) -> RunDir:
        """An existing run directory.

        Raises:
            ConfigError: ``path`` holds no run.
        """
        run_dir = cls(path)
        if not run_dir.run_file.is_file():
            state = "has no run.yaml" if run_dir.path.is_dir() else "does not exist"
            raise ConfigError(f"{path} is not a run directory: it {state}", _runs_beside(run_dir.path))
        return run_dir

    def require_free(self, fresh: bool) -> None:
        """Refuse a directory that holds a run already, unless ``fresh`` says to move it away.

        Raises:
            ConfigError: the directory is taken.
        """
        if self._taken() and not fresh:
            raise ConfigError(
                f"the run directory {short_path(self.path)} exists already",
                f"Continue it with `grpo-hpc resume {short_path(self.path)}`, give the new run another name "
                f"(name=...), or submit with --fresh, which moves the old one to {self.old_path().name}.",
            )

    def make_room(self, move_away: Callable[[RunDir], None] | None) -> None:
        """Have what holds this path moved away.

        Raises:
            ConfigError: the directory is taken, and nobody may move it.
        """
        self.require_free(fresh=move_away is not None)
        if move_away and self._taken():
            move_away(self)

    def config(self) -> RunConfig:
        """The resolved run file of this run."""
        return load_run(self.run_file)

    def write_plan(self, plan: PlanLike) -> None:
        """Put ``plan`` in the place of what was planned."""
        write_atomically(self.plan_file, _json(plan.to_dict()))

    def planned_servers(self) -> list[dict[str, Any]]:
        """The vLLM servers of the plan, with the fields of :class:`grpo_hpc.plan.topology.ServerPlace`."""
        try:
            return list(json.loads(self.plan_file.read_text(encoding="utf-8"))["topology"]["servers"])
        except (ValueError, TypeError, LookupError, RecursionError) as error:
            raise ConfigError(f"{self.plan_file} is damaged: {type(error).__name__}: {error}") from None

    def ask_to_stop(self, why: str) -> None:
        """Ask the trainer to save and stop; of several reasons the first one stays."""
        with suppress(FileExistsError), self.stop.open("x", encoding="utf-8") as file:
            file.write(why)

    def why_stop(self) -> str | None:
        """Why the trainer was asked to stop; None when nobody asked. A file made by hand says nothing."""
        try:
            return self.stop.read_text(encoding="utf-8", errors="replace").strip()
        except FileNotFoundError:
            return None

    def new_attempt(self) -> Path:
        """Make the log folder of the next start, point ``latest`` at it, and return it. One of several makes it.

        Raises:
            EnvironmentProblem: somebody else has just made it.
        """
        numbers = [path.name.removeprefix("attempt_") for path in self.path.glob("attempt_*")]
        attempt = self.path / f"attempt_{max((int(n) for n in numbers if n.isdecimal()), default=0) + 1}"
        try:
            attempt.mkdir()
        except FileExistsError:
            said = f"{attempt.name} of {self.path.name} has just been begun by somebody else"
            raise EnvironmentProblem(said) from None
        link_atomically(self.latest, attempt.name)
        return attempt

    def latest_attempt(self) -> Path:
        """The log folder of the present start.

        Raises:
            ConfigError: the run was never started.
        """
        if not self.latest.is_dir():
            raise ConfigError(f"{self.path} has no attempt yet", f"Start it with `grpo-hpc resume {self.path}`.")
        return self.latest.resolve()

    def environment_log(self, rank: int) -> Path:
        """What environments of the episodes that a rank played have printed."""
        return self.path / "environments" / f"rank_{rank:05d}.log"

    @staticmethod
    def rank_log(attempt: Path, rank: int) -> Path:
        """Where rank ``rank`` writes its standard output and standard error."""
        return attempt / f"rank_{rank}.log"

    @staticmethod
    def launcher_log(attempt: Path) -> Path:
        """Where torchrun writes, and every rank until it has opened its own log."""
        return attempt / "launcher.log"

    @staticmethod
    def servers_file(attempt: Path) -> Path:
        """Where the trainer finds the vLLM servers: ``{"servers": [{"url", "node", "gpus"}]}``, once all are ready."""
        return attempt / "servers.json"

    @staticmethod
    def api_key(attempt: Path) -> Path:
        """The key that the servers of this start ask for; readable by its owner alone, gone when they are."""
        return attempt / "servers" / "api_key"

    @staticmethod
    def server_log(attempt: Path, server: int) -> Path:
        """Where server ``server``, counted as in the plan, writes."""
        return attempt / f"server_{server}.log"

    def _taken(self) -> bool:
        return self.path.exists() and not (self.path.is_dir() and not any(self.path.iterdir()))

    def old_path(self) -> Path:
        """Where this directory would be moved to make room for another."""

        def name(k: int) -> Path:
            return self.path.with_name(f"{self.path.name}.old-{k}")

        return name(_first_free(name))


def with_absolute_paths(cfg: RunConfig) -> RunConfig:
    """``cfg`` with every path made absolute, so that the run can be resumed from any folder."""
    model, data, config = cfg.model, cfg.data, cfg.model.config
    if config is not None and model_config(config) is None:  # the name of a shipped one is no path
        config = _absolute(config)
    functions = [with_file(name, _absolute) for name in cfg.rewards.reward_funcs]
    parameters = {name: with_paths(given, _absolute) for name, given in cfg.rewards.reward_params.items()}
    return cfg.model_copy(
        update={
            "output_dir": _absolute(cfg.output_dir),
            "model": model.model_copy(update={"path": _absolute(model.path), "config": config}),
            "data": data.model_copy(
                update={"train": _absolute(data.train), "eval": data.eval and _absolute(data.eval)}
            ),
            "rollout": _with_absolute_environment(cfg.rollout),
            "rewards": cfg.rewards.model_copy(update={"reward_funcs": functions, "reward_params": parameters}),
        }
    )


def _with_absolute_environment(rollout: Rollout) -> Rollout:
    if rollout.environment is None:
        return rollout
    environment = with_absolute_file(rollout.environment, _absolute)
    parameters = with_paths(rollout.environment_params, _absolute)
    return rollout.model_copy(update={"environment": environment, "environment_params": parameters})


def _absolute(path: str) -> str:
    return str(Path(path).absolute())


def _first_free(path_of: Callable[[int], Path]) -> int:
    number = 1
    while path_of(number).exists():
        number += 1
    return number


def short_path(path: str | Path) -> str:
    """``path`` as people would type it: relative to the present folder when it lies below."""
    path, here = Path(path), Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) and path != here else str(path)


def _runs_beside(path: Path) -> str:
    """The run that was meant, or those that are there: in the folder ``path``, or beside it."""
    if inside := [short_path(run.parent) for run in sorted(path.glob("*/run.yaml"))]:
        return f"It holds {', '.join(inside[:6])}{' and others' if len(inside) > 6 else ''}: name one."
    found = {run.parent.name: short_path(run.parent) for run in sorted(path.parent.glob("*/run.yaml"))}
    if near := difflib.get_close_matches(path.name, found, n=1):
        return f"Did you mean {found[near[0]]}?"
    return f"Run directories there: {', '.join(list(found.values())[:6])}" if found else ""


def _json(value: object) -> str:
    return json.dumps(value, indent=2) + "\n"
