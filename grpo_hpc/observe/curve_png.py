"""Pictures for reports."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from grpo_hpc.errors import ConfigError
from grpo_hpc.observe.history import History


def curve_png(metrics_paths: Sequence[str | Path], out: str | Path, metric: str = "reward/mean") -> None:
    """Draw ``metric`` by step: a thin line per run, and their mean where there are several.

    Args:
        metrics_paths: the runs' metrics.jsonl files.
        out: the PNG to write.

    Raises:
        ConfigError: a file holds no value of the metric.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    courses = [_course(Path(path), metric) for path in metrics_paths]
    figure = Figure(figsize=(7.0, 3.6), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    several = len(courses) > 1
    for path, course in zip(metrics_paths, courses, strict=True):
        width, alpha = (1.0, 0.45) if several else (1.8, 1.0)
        name = Path(path).absolute().parent.name
        axes.plot(list(course), list(course.values()), label=name, linewidth=width, alpha=alpha)
    if several:
        shared = sorted(set.intersection(*(set(course) for course in courses)))
        mean = [fmean(course[step] for course in courses) for step in shared]
        axes.plot(shared, mean, color="black", linewidth=2.0, label="mean")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("optimizer step")
    axes.set_ylabel(metric)
    axes.set_ylim(bottom=min(0.0, *(min(course.values()) for course in courses)))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out)


def _course(path: Path, metric: str) -> dict[int, float]:
    series = History.read(path).series(metric)
    course = {step: value for step, value in series.items() if value is not None}
    if not course:
        raise ConfigError(f"{path} holds no values of {metric}")
    return course
