"""The report of tools/bench_learning.py: the curves as a picture, a table with a row per run, and the settings."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from math import isfinite
from pathlib import Path
from statistics import fmean, median
from typing import Any

from grpo_hpc.errors import ConfigError
from grpo_hpc.files import write_atomically
from grpo_hpc.observe.draw import duration
from grpo_hpc.observe.history import finite, first_and_last_fifth
from tools.report_quickstart import Result, scores

WHO = {"ours": "grpo-hpc", "trl": "TRL"}
GOAL = 0.9
_HEADS = ["trainer", "seed", "steps", "reward, first fifth", "last fifth", "ratio", "held out, before", "after",
          f"{GOAL} from step", "median step", "whole run"]  # fmt: skip
_WITHOUT_MEANING = ("report_to", "disable_tqdm", "save_strategy", "logging_steps", "seed")
_READING = """\
Lines are means over the seeds; bands reach from the lowest to the highest. Reward is the mean over the completions
sampled in training; held out is one greedy answer per question, given by each trainer's own vLLM. Runs
shared a GPU, so these seconds are not for comparison.""".splitlines()
_SETTINGS = """\
TRL's arguments, each taken from our resolved run file. Both keep weights and Adam's moments in float32 and compute in
bfloat16 (TRL: a float32 model under autocast); both engines hold bfloat16 weights. Neither corrects for the difference
between engine and trainer. Both read the same chats, template and reward function. The order of the rows and the
samples differ: TRL shuffles with its own generator and leaves out what does not fill a batch at the end of an epoch,
and its engine draws from one generator where ours has a seed for every completion.""".splitlines()

Record = dict[str, Any]
Course = dict[int, float]


def read_records(folder: Path) -> list[Record]:
    """The runs in ``folder``, ours first, by seed.

    Raises:
        ConfigError: there are none.
    """
    records = [json.loads(file.read_text()) for file in folder.glob("*_seed*.json")]
    if not records:
        raise ConfigError(f"{folder} holds no records of tools/bench_learning.py run")
    return sorted(records, key=lambda record: (list(WHO).index(record["who"]), record["seed"]))


def rewards(record: Record) -> Course:
    """Mean reward by step."""
    return {step["step"]: step["reward"] for step in record["steps"] if step["reward"] is not None}


def accuracies(record: Record) -> Course:
    """Held-out accuracy by step."""
    return {int(step): value for step, value in record["held_out"].items() if value is not None}


def band(courses: Sequence[Course]) -> dict[int, tuple[float, float, float]]:
    """Lowest value, mean and highest value at each step that every course has."""
    shared = sorted(set.intersection(*map(set, courses)))
    at = {step: [course[step] for course in courses] for step in shared}
    return {step: (min(values), fmean(values), max(values)) for step, values in at.items()}


def result(record: Record) -> Result:
    """The figures of a run that made steps. ``after`` is the accuracy after the last step."""
    first, last = first_and_last_fifth(list(rewards(record).values()))
    held_out, steps = accuracies(record), record["steps"]
    return Result(
        name=WHO[record["who"]], seed=record["seed"], steps=len(steps), first=first, last=last,
        before=held_out.get(0), after=held_out.get(steps[-1]["step"]), seconds=record.get("seconds", float("nan")),
        step_seconds=median(finite(step["seconds"] for step in steps)), phases={},
    )  # fmt: skip


def stays_above(course: Course, goal: float = GOAL) -> int | None:
    """First measured step from which on every value is at least ``goal``; None when the last one is not."""
    found = None
    for step in sorted(course, reverse=True):
        if course[step] < goal:
            break
        found = step
    return found


def markdown(title: str, records: Sequence[Record], gpu: str, command: str) -> str:
    """The report's text; its picture lies beside it as ``<title>.png``."""
    done = {who: [r for r in records if r["who"] == who and rewards(r)] for who in WHO}
    lines = [f"# Learning beside TRL on one {gpu}", "", *_versions(records), "", *_verdict(done), "",
             f"![mean reward and held-out accuracy by step]({title}.png)", "",
             f"| {' | '.join(_HEADS)} |", "|---" * len(_HEADS) + "|"]  # fmt: skip
    for runs in done.values():
        lines += [_row([result(run)], str(run["seed"]), stays_above(accuracies(run))) for run in runs]
        lines += [_row([*map(result, runs)], "**mean**", None)] if len(runs) > 1 else []
    lines += ["", *_READING]
    failed = [r for r in records if "error" in r]
    for run in failed:
        lines += ["", f"{WHO[run['who']]} with seed {run['seed']} stopped after {len(run['steps'])} steps:", "",
                  "```", run["error"].strip()[-800:], "```"]  # fmt: skip
    return "\n".join([*lines, "", *_settings(records), "", "## How it was made", "", "```sh", command,
                      f"python tools/bench_learning.py report records docs/benchmarks/{title}", "```", ""])  # fmt: skip


def _versions(records: Sequence[Record]) -> list[str]:
    found = {name: version for record in records for name, version in record.get("versions", {}).items()}
    return [f"The quickstart's task with {', '.join(f'{name} {version}' for name, version in found.items())}."]


def _verdict(done: Mapping[str, Sequence[Record]]) -> list[str]:
    lines = []
    for who, runs in done.items():
        ends = finite(result(run).after for run in runs)
        if ends:
            reached = sum(end >= GOAL for end in ends)
            lines.append(f"{WHO[who]}: {fmean(ends):.3f} held out at the end ({min(ends):.3f} to {max(ends):.3f}); "
                         f"{reached} of {len(runs)} runs end at {GOAL} or more.")  # fmt: skip
    return ["\n".join(f"- {line}" for line in lines)]


def _row(results: Sequence[Result], seed: str, above: int | None) -> str:
    ends = [r.seconds for r in results if isfinite(r.seconds)]
    cells = [results[0].name, seed, str(min(r.steps for r in results)), *scores(results),
             "-" if above is None else str(above), f"{fmean(r.step_seconds for r in results):.2f} s",
             duration(fmean(ends)) if ends else "-"]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def _settings(records: Sequence[Record]) -> list[str]:
    """What TRL was given: every value is computed from our resolved run file."""
    given: dict[str, Any] = next((r["settings"] for r in records if "settings" in r), {})
    shown = [f"- `{key}`: {value}" for key, value in given.items() if key not in _WITHOUT_MEANING]
    return ["## Settings", "", *_SETTINGS, "", *shown]


def draw(records: Sequence[Record], out: Path) -> None:
    """Mean and range over the seeds by step: reward on the left, held-out accuracy on the right."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.0, 3.8), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    panels: list[tuple[str, Callable[[Record], Course]]] = [("mean reward", rewards), ("held-out accuracy", accuracies)]
    for axes, (label, course_of) in zip(figure.subplots(1, 2, sharey=True), panels, strict=True):
        for who, name in WHO.items():
            courses = [course for record in records if record["who"] == who and (course := course_of(record))]
            found = band(courses) if courses else {}
            if found:
                low, mean, high = zip(*found.values(), strict=True)
                axes.plot(list(found), mean, label=f"{name}, {len(courses)} seeds", linewidth=1.8)
                axes.fill_between(list(found), low, high, alpha=0.2)
        axes.axhline(GOAL, color="gray", linewidth=0.8, linestyle="--")
        axes.set_xlabel("optimizer step")
        axes.set_ylabel(label)
        axes.set_ylim(0.0, 1.0)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, loc="lower right")
    figure.savefig(out)


def write_report(folder: Path, report: Path, gpu: str, command: str) -> int:
    """Write ``report``.md and ``report``.png from the records in ``folder``."""
    records = read_records(folder)
    report.parent.mkdir(parents=True, exist_ok=True)
    draw(records, report.with_name(f"{report.name}.png"))
    write_atomically(report.with_name(f"{report.name}.md"), markdown(report.name, records, gpu, command))
    return 0
