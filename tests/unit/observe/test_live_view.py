"""The live view: what it knows about a run, what it draws, and what it writes to a log file."""

from __future__ import annotations

import io

import pytest
from rich.cells import cell_len
from rich.console import Console

from grpo_hpc.observe.events import EventLog
from grpo_hpc.observe.history import History
from grpo_hpc.observe.live import LiveView
from grpo_hpc.observe.panel import render
from grpo_hpc.observe.sinks import MetricSinks
from grpo_hpc.observe.state import RunState

STEP = {
    "reward/mean": 0.25,
    "rewards/exact_number/mean": 0.25,
    "loss": 0.0123,
    "kl": 0.0,
    "completions/clipped_ratio": 0.75,
    "throughput/rollout_tokens_per_s": 330.0,
    "time/step": 10.0,
    "time/rollout": 4.0,
    "time/train": 5.0,
    "time/reward": 0.001,
}


def state_after(steps, total=10, **changes):
    state = RunState(total)
    clock = 1000.0
    state.apply({"t": clock, "event": "phase", "name": "start", "step": 0})
    state.apply({"t": clock, "event": "metrics", "step": 0, "values": {"eval/exact_number/mean": 0.4}})
    for step in range(1, steps + 1):
        state.apply({"t": clock, "event": "phase", "name": "rollout", "step": step})
        clock += 10
        state.apply(
            {"t": clock, "event": "metrics", "step": step, "values": STEP | {"reward/mean": 0.1 * step} | changes}
        )
    return state, clock


def drawn(state, now, width=80, height=40):
    console = Console(width=width, height=height, file=io.StringIO(), force_terminal=True, color_system=None)
    console.print(render(state, "demo", now, width, height))
    return console.file.getvalue()


# -- state -----------------------------------------------------------------------------------------------------------


def test_steps_phase_and_time_left():
    state, now = state_after(4)
    state.apply({"t": now, "event": "phase", "name": "rollout", "step": 5})
    state.apply({"t": now + 1, "event": "progress", "done": 3, "total": 8})
    assert (state.done, state.phase, state.progress) == (4, "rollout", (3, 8))
    assert state.seconds_left(now) == 60.0
    assert state.seconds_left(now + 4) == 56.0
    assert state.seconds_left(now + 400) == 50.0  # a slow step is not held against the later ones
    assert RunState(10).seconds_left(now) is None


def test_one_slow_step_hardly_changes_the_time_left():
    state, now = state_after(5)
    state.apply({"t": now, "event": "metrics", "step": 6, "values": STEP | {"time/step": 500.0}})
    assert state.seconds_left(now) == 40.0


def test_a_resumed_run_forgets_the_steps_it_makes_again(tmp_path):
    sinks = MetricSinks(tmp_path / "metrics.jsonl")
    for step in range(1, 8):
        sinks.log(step, {"reward/mean": float(step)})
    state = RunState(10, History.read(tmp_path / "metrics.jsonl"))
    state.apply({"t": 0.0, "event": "phase", "name": "start", "step": 0})
    assert len(state.history.series("reward/mean")) == 7
    state.apply({"t": 1.0, "event": "phase", "name": "rollout", "step": 5})
    assert state.done == 4 and list(state.history.series("reward/mean")) == [1, 2, 3, 4]


# -- panel -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [60, 80, 120, 200])
@pytest.mark.parametrize("height", [16, 24, 30, 50])
def test_the_panel_fits_the_terminal(width, height):
    state, now = state_after(7)
    state.apply({"t": now, "event": "message", "text": "word " * 60})
    lines = drawn(state, now, width, height).splitlines()
    assert len(lines) < height
    assert {cell_len(line) for line in lines} == {min(width, 132)}


def test_the_panel_says_what_matters():
    state, now = state_after(4)
    state.apply({"t": now, "event": "phase", "name": "rollout", "step": 5})
    text = drawn(state, now + 3)
    for part in ("demo", "4 / 10 steps", "about 57 s left", "sampling completions  3.0 s", "0.400", "mean reward"):
        assert part in text
    for part in ("0.0123", "330 tok/s", "before training", "rollout 4.0 s", "train 5.0 s", "Ctrl-C"):
        assert part in text
    assert "reward 0.0 s" not in text  # too short to matter


def test_the_chart_gives_way_first():
    state, now = state_after(4)
    assert "mean reward" in drawn(state, now, height=24)
    assert "mean reward" not in drawn(state, now, height=18)
    assert "learning rate" in drawn(state, now, height=18)


def test_values_that_are_not_finite_are_shown():
    state, now = state_after(2, loss=None)
    assert "nan" in drawn(state, now)


@pytest.mark.parametrize(
    ("event", "said"),
    [
        ({"event": "finished", "summary": {}}, "finished   mean reward 0.100 in the first fifth, 0.400 in the last"),
        ({"event": "stopped", "step": 4}, "stopped after step 4, everything saved"),
        ({"event": "error", "kind": "RewardError", "message": "m", "hint": ""}, "ended by an error"),
    ],
)
def test_the_panel_says_how_it_ended(event, said):
    state, now = state_after(4)
    state.apply({"t": now, **event})
    text = drawn(state, now + 100)
    assert said in text and "40 s" in text and "Ctrl-C" not in text


# -- view ------------------------------------------------------------------------------------------------------------


def followed(tmp_path, terminal):
    console = Console(width=80, height=40, file=io.StringIO(), force_terminal=terminal, color_system=None)
    log = EventLog(tmp_path / "demo" / "events.jsonl")
    log.message("of an earlier start")
    with LiveView(tmp_path / "demo" / "events.jsonl", tmp_path / "demo" / "metrics.jsonl", 2, console) as view:
        log.phase("start", 0)
        log.metrics(0, {"eval/exact_number/mean": 0.5, "eval/mean_length": 7.0})
        log.phase("rollout", 1)
        log.metrics(1, STEP)
        log.message("a word")
        view.poll()
        log.metrics(2, STEP | {"loss": float("nan")})
        log.finished({"lines": ["checkpoint  [here]"]})
        view.poll()
    return console.file.getvalue()


def test_without_a_terminal_there_is_one_line_per_step(tmp_path):
    assert followed(tmp_path, terminal=False).splitlines() == [
        "loading model and engine",
        "held out, before training:  exact_number 0.500",
        "step 1/2  reward 0.250  loss 0.0123  KL 0  in 10.0 s  about 10 s left",
        "a word",
        "step 2/2  reward 0.250  loss nan  KL 0  in 10.0 s",
        "checkpoint  [here]",
    ]


def test_in_a_terminal_the_last_panel_stays_and_the_closing_lines_follow(tmp_path):
    text = followed(tmp_path, terminal=True)
    assert "─ demo ─" in text and "2 / 2 steps" in text and "earlier start" not in text
    assert text.rstrip().endswith("checkpoint  [here]")


def test_a_run_that_dies_silently_is_not_shown_as_running(tmp_path):
    console = Console(width=80, height=40, file=io.StringIO(), force_terminal=True, color_system=None)
    with LiveView(tmp_path / "events.jsonl", tmp_path / "metrics.jsonl", 2, console):
        pass
    assert "ended before it was finished" in console.file.getvalue()
