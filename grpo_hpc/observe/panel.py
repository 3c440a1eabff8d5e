"""The live display of a run, drawn from its state: a pure function, so that it can be looked at in tests."""

from __future__ import annotations

from itertools import zip_longest

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.panel import Panel
from rich.text import Text

from grpo_hpc.observe.draw import axis_limits, curve, duration, shares, sparkline
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
_PHASE_STYLES = {
    "sync": "magenta",
    "rollout": "cyan",
    "reward": "yellow",
    "offload": "red",
    "logprob": "green",
    "train": "blue",
}
_WORRYING = {"completions/clipped_ratio": 0.5, "reward/zero_variance_groups": 0.9}  # from here on shown in yellow
_LABEL_WIDTH, _VALUE_WIDTH, _AXIS_WIDTH = 13, 11, 6
_VISIBLE = 0.01
_CHART_LEAST, _CHART_MOST, _CHART_EXTRA = 3, 8, 2  # lines of the curve; the axis and a blank line
_WIDEST = 132
_FRAME_WIDTH, _FRAME_HEIGHT = 6, 3  # borders and padding; borders and the cursor's line

_Block = list[RenderableType]  # one line each


def render(state: RunState, name: str, now: float, width: int, height: int) -> RenderableType:
    """The display.

    Args:
        name: of the run.
        now: seconds since the epoch.
        width, height: of the terminal, in characters. The chart takes the lines that the rest leaves.
    """
    width = min(width, _WIDEST)
    inner = width - _FRAME_WIDTH
    head: _Block = [_progress(state, now, inner), _present(state, now)]
    room = height - _FRAME_HEIGHT
    blocks = [block for block in (_numbers(state, inner), _time_bar(state, inner), _held_out(state)) if block]
    while len(blocks) > 1 and _lines(head, *blocks) > room:
        blocks.pop()
    messages = _messages(state)
    if messages and _lines(head, *blocks, messages) + _CHART_EXTRA + _CHART_LEAST <= room:
        blocks.append(messages)
    free = room - _lines(head, *blocks) - _CHART_EXTRA
    if free >= _CHART_LEAST:
        blocks.insert(0, _reward_chart(state, inner, min(free, _CHART_MOST)))
    parts = [*head, *(line for block in blocks for line in (Text(), *block))]
    return Panel(
        Padding(Group(*parts), (0, 2)),
        title=Text(name, style="bold"),
        title_align="left",
        subtitle=None if state.outcome else Text("Ctrl-C saves and stops", style="dim"),
        subtitle_align="right",
        border_style="dim",
        width=width,
        padding=0,
    )


def _lines(head: _Block, *blocks: _Block) -> int:
    return len(head) + sum(1 + len(block) for block in blocks)


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


def _present(state: RunState, now: float) -> RenderableType:
    """What the run is doing, or how it ended."""
    if state.outcome:
        return _ending(state)
    line = Text(no_wrap=True, overflow="ellipsis")
    if not state.phase:
        return line.append("starting processes", style="dim")
    style = _PHASE_STYLES.get(state.phase, "default")
    line.append("▸ ", style=style).append(PHASES.get(state.phase, state.phase), style=style)
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
        "interrupted": Text("ended before it was finished", style="bold red"),
    }
    line = texts[state.outcome]
    rewards = finite(state.history.series("reward/mean").values())
    if rewards:
        first, last = first_and_last_fifth(rewards)
        line.append(f"   mean reward {first:.3f} in the first fifth, {last:.3f} in the last", style="not bold default")
    return line


def _reward_chart(state: RunState, width: int, height: int) -> _Block:
    """Mean reward over all steps of the run."""
    points = state.history.series("reward/mean")
    limits = axis_limits(finite(points.values()))
    columns = width - _AXIS_WIDTH - 1
    ticks = {0: f"{limits[1]:g}", height - 1: f"{limits[0]:g}"}
    lines: _Block = []
    for row, dots in enumerate(curve(points, state.total_steps, columns, height, limits)):
        line = Text(f"{ticks.get(row, ''):>{_AXIS_WIDTH}} ", style="dim", no_wrap=True)
        lines.append(line.append(dots, style="not dim cyan"))
    last = f"step {state.total_steps}"
    axis = "mean reward".ljust(columns - len(last)) + last
    return [*lines, Text(" " * (_AXIS_WIDTH + 1) + axis, style="dim", no_wrap=True)]


def _numbers(state: RunState, width: int) -> _Block:
    """Newest values, each with its course over the run, in two columns."""
    rewards = state.history.names("rewards/")
    left = [_LEARNING[0], *(rewards if len(rewards) > 1 else []), *_LEARNING[1:]]
    half = (width - 3) // 2
    lines: _Block = []
    for names in zip_longest(left, _SAMPLING):
        line = Text(no_wrap=True)
        for column, name in enumerate(names):
            line.append("   " if column else "").append(_number(state, name, half) if name is not None else Text())
        lines.append(line)
    return lines


def _number(state: RunState, name: str, width: int) -> Text:
    """Label, newest value and course of one metric, in ``width`` characters."""
    metric = lookup(name)
    course = list(state.history.series(name).values())
    if metric is not None:  # so that noise below the digits shown does not look like news
        course = [None if value is None else metric.seen(value) for value in course]
    label = Text(_label(name), style="dim")
    label.truncate(_LABEL_WIDTH, overflow="ellipsis", pad=True)
    value = _value(name, course)
    value.align("right", max(_VALUE_WIDTH, value.cell_len))
    spark = Text(sparkline(course, width - label.cell_len - value.cell_len - 3), style="cyan")
    line = Text.assemble(label, " ", value, "  ", spark)
    line.truncate(width, pad=True)
    return line


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


def _time_bar(state: RunState, width: int) -> _Block:
    """Where the time of the last step went; phases below a hundredth of it are left out."""
    times = {phase: spent for phase, spent in state.phase_times().items() if spent >= _VISIBLE * state.step_seconds()}
    if not times:
        return []
    bar = Text(no_wrap=True)
    legend = Text(f"last step {duration(state.step_seconds())}", style="dim", no_wrap=True, overflow="ellipsis")
    for (phase, spent), cells in zip(times.items(), shares(list(times.values()), width), strict=True):
        style = _PHASE_STYLES[phase]
        bar.append("━" * cells, style=style)
        legend.append(f"   {phase} ", style=f"not dim {style}").append(duration(spent), style="not dim")
    return [bar, legend]


def _held_out(state: RunState) -> _Block:
    """First and newest evaluation of every reward function."""
    lines: _Block = []
    for name in state.history.names("eval/"):
        if not name.endswith("/mean"):
            continue
        points = list(state.history.series(name).items())
        line = Text(f"held out  {reward_name(name)}  ", style="dim", no_wrap=True, overflow="ellipsis")
        for index, (step, value) in enumerate([points[0], points[-1]] if len(points) > 1 else points):
            line.append("  →  " if index else "", style="dim")
            line.append("nan" if value is None else f"{value:.3f}", style="not dim bold")
            line.append(" before training" if step == 0 else f" after step {step}", style="dim")
        lines.append(line)
    return lines


def _messages(state: RunState) -> _Block:
    return [Text(text, style="dim", no_wrap=True, overflow="ellipsis") for text in state.messages[-2:]]
