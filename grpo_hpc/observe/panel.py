"""The live display of a run, drawn from its state: a pure function, so that it can be looked at in tests."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from grpo_hpc.observe.draw import area_chart, duration, round_ceiling, shares, sparkline
from grpo_hpc.observe.history import Value, finite, first_and_last_fifth
from grpo_hpc.observe.metrics import PHASES, lookup, reward_name
from grpo_hpc.observe.state import RunState

_LEARNING = ("reward/mean", "loss", "kl", "clip_ratio/region_mean", "entropy", "grad_norm", "learning_rate")
_SAMPLING = (
    "completions/mean_length",
    "completions/clipped_ratio",
    "reward/zero_variance_groups",
    "mismatch/logprob_abs_diff",
    "throughput/rollout_tokens_per_s",
    "throughput/train_tokens_per_s",
    "memory/peak_gib",
)
_PHASE_STYLES = {"sync": "magenta", "rollout": "cyan", "reward": "yellow", "logprob": "green", "train": "blue"}
_WORRYING = {"completions/clipped_ratio": 0.5, "reward/zero_variance_groups": 0.9}  # from here on shown in yellow
_CHART_HEIGHT, _AXIS_WIDTH = 5, 6
_LEAST_HEIGHT_FOR_CHART = 26
_WIDEST = 132


def render(state: RunState, name: str, now: float, width: int, height: int) -> RenderableType:
    """The display.

    Args:
        name: of the run.
        now: seconds since the epoch.
        width, height: of the terminal, in characters. The chart is left out where it would not fit.
    """
    width = min(width, _WIDEST)
    inner = width - 6
    parts: list[RenderableType] = [_progress(state, now, inner), _present(state, now, inner)]
    if height >= _LEAST_HEIGHT_FOR_CHART:
        parts += [Text(), *_reward_chart(state, inner)]
    parts += [Text(), _numbers(state, inner)]
    if times := state.phase_times():
        parts += [Text(), *_time_bar(state, times, inner)]
    if held_out := _held_out(state):
        parts += [Text(), *held_out]
    if state.messages:
        parts += [Text(), *(Text(text, style="dim", no_wrap=True, overflow="ellipsis") for text in state.messages[-2:])]
    hint = None if state.outcome else Text("Ctrl-C saves and stops", style="dim")
    title = Text(f" {name} ", style="bold")
    body = Padding(Group(*parts), (0, 2))
    return Panel(
        body,
        title=title,
        subtitle=hint,
        title_align="left",
        subtitle_align="right",
        border_style="dim",
        width=width,
        padding=0,
    )


def _progress(state: RunState, now: float, width: int) -> RenderableType:
    """Steps made, a bar, and how long it takes."""
    count = f"{state.done} / {state.total_steps} steps"
    end = state.ended if state.outcome else now
    elapsed = duration(end - state.started) if state.started is not None else "-"
    left = state.seconds_left(now)
    remaining = "" if state.outcome else f"  about {duration(left)} left" if left is not None else ""
    times = f"{elapsed}{remaining}"
    cells = max(4, width - len(count) - len(times) - 4)
    filled = round(cells * state.done / state.total_steps)
    line = Text(f"{count}  ", style="bold", no_wrap=True)
    line.append("━" * filled, style="cyan")
    line.append("─" * (cells - filled), style="dim")
    line.append(f"  {times}", style="not bold")
    return line


def _present(state: RunState, now: float, width: int) -> RenderableType:
    """What the run is doing, or how it ended."""
    if state.outcome:
        return _ending(state)
    line = Text(no_wrap=True, overflow="ellipsis")
    if not state.phase:
        return line.append("starting processes", style="dim")
    line.append(PHASES.get(state.phase, state.phase), style=_PHASE_STYLES.get(state.phase, "default"))
    line.append(f"  {duration(now - state.phase_since)}")
    if state.progress is not None:
        done, total = state.progress
        line.append(f"  {done} of {total}", style="dim")
    return line


def _ending(state: RunState) -> Text:
    texts = {
        "finished": Text("finished", style="bold green"),
        "stopped": Text(f"stopped after step {state.done}, everything saved", style="bold yellow"),
        "error": Text("ended by an error", style="bold red"),
    }
    line = texts[state.outcome]
    rewards = finite(state.history.series("reward/mean").values())
    if rewards:
        first, last = first_and_last_fifth(rewards)
        line.append(f"   mean reward {first:.3f} in the first fifth, {last:.3f} in the last", style="not bold default")
    return line


def _reward_chart(state: RunState, width: int) -> list[RenderableType]:
    """Mean reward over all steps of the run."""
    points = state.history.series("reward/mean")
    columns = width - _AXIS_WIDTH - 2
    top = round_ceiling(max(finite(points.values()), default=1.0))
    bars = area_chart(points, state.total_steps, columns, _CHART_HEIGHT, top)
    ticks = {0: f"{top:g}", _CHART_HEIGHT - 1: "0"}
    lines: list[RenderableType] = []
    for row, bar in enumerate(bars):
        line = Text(f"{ticks.get(row, ''):>{_AXIS_WIDTH}} ", style="dim", no_wrap=True)
        lines.append(line.append(bar, style="not dim cyan"))
    last = f"step {state.total_steps}"
    axis = "reward".ljust(columns - len(last)) + last
    lines.append(Text(" " * (_AXIS_WIDTH + 1) + axis, style="dim", no_wrap=True))
    return lines


def _numbers(state: RunState, width: int) -> RenderableType:
    """Newest values, each with its course over the run, in two columns."""
    extra = state.history.names("rewards/")
    learning = [_LEARNING[0], *(extra if len(extra) > 1 else []), *_LEARNING[1:]]
    half = (width - 3) // 2
    table = Table.grid(padding=(0, 3, 0, 0), collapse_padding=True)
    table.add_column(width=half)
    table.add_column(width=half)
    table.add_row(_column(state, learning, half), _column(state, _SAMPLING, half))
    return table


def _column(state: RunState, names: tuple[str, ...] | list[str], width: int) -> Table:
    label, value = 14, 11
    table = Table.grid(padding=(0, 1, 0, 0))
    table.add_column(width=label, style="dim", no_wrap=True, overflow="ellipsis")
    table.add_column(width=value, justify="right", no_wrap=True)
    table.add_column(width=width - label - value - 3, style="cyan", no_wrap=True)
    for name in names:
        course = list(state.history.series(name).values())
        table.add_row(
            _label(name), _value(name, course), Text(" ") + Text(sparkline(course, width - label - value - 4))
        )
    return table


def _label(name: str) -> str:
    metric = lookup(name)
    return name if metric is None else metric.label.replace("<name>", reward_name(name))


def _value(name: str, course: list[Value]) -> Text:
    if not course:
        return Text("-", style="dim")
    value, metric = course[-1], lookup(name)
    text = Text(metric.show(value) if metric is not None else f"{value}")
    if value is None:
        text.stylize("bold red")
    elif value >= _WORRYING.get(name, float("inf")):
        text.stylize("yellow")
    return text


def _time_bar(state: RunState, times: dict[str, float], width: int) -> list[RenderableType]:
    """Where the time of the last step went."""
    last = state.history.last("time/step")
    whole = last[1] if last is not None and last[1] is not None else sum(times.values())
    head = f"last step {duration(whole)}"
    bar, legend = Text(no_wrap=True), Text(f"{head}   ", style="dim", no_wrap=True, overflow="ellipsis")
    for (phase, seconds), cells in zip(times.items(), shares(list(times.values()), width), strict=True):
        style = _PHASE_STYLES[phase]
        bar.append("━" * cells, style=style)
        legend.append(f"{phase} ", style=f"not dim {style}").append(f"{duration(seconds)}   ", style="not dim")
    return [bar, legend]


def _held_out(state: RunState) -> list[RenderableType]:
    """First and newest evaluation of every reward function."""
    lines: list[RenderableType] = []
    for name in state.history.names("eval/"):
        if not name.endswith("/mean"):
            continue
        points = list(state.history.series(name).items())
        line = Text(f"held out  {reward_name(name)}  ", style="dim", no_wrap=True, overflow="ellipsis")
        for index, (step, value) in enumerate([points[0], points[-1]] if len(points) > 1 else points):
            line.append("  ->  " if index else "", style="dim")
            line.append("nan" if value is None else f"{value:.3f}", style="not dim bold")
            line.append(" before training" if step == 0 else f" after step {step}", style="dim")
        lines.append(line)
    return lines
