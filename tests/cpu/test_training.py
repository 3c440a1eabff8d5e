"""Whole runs through the command line: what they leave behind, interruption and resume, layouts, mistakes."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from runfiles import write_run
from safetensors.torch import load_file

from grpo_hpc.observe.completions import read_completions

ROOT = Path(__file__).parents[2]
PLUGINS = Path(__file__).parent / "plugins.py"
STEPS = 6
VOLATILE = {"time", "memory/peak_gib"}  # and everything timed: all else must survive an interruption


def cli(*args: object) -> list[str]:
    return [sys.executable, "-m", "grpo_hpc.cli", *map(str, args)]


def environment() -> dict[str, str]:
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}


def call(*args: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(cli(*args), env=environment(), capture_output=True, text=True, timeout=400, check=False)


def metrics(run_dir: Path) -> dict[int, dict[str, float]]:
    """The training rows of a run by step; a step that is written twice fails."""
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if "loss" in row]
    assert len({row["step"] for row in steps}) == len(steps)
    timed = ("time/", "throughput/")
    return {row["step"]: {k: v for k, v in row.items() if not k.startswith(timed)} for row in steps}


def write_data(folder: Path, rows: int = 12) -> None:
    for name, start in (("train", 0), ("eval", 100)):
        lines = [json.dumps({"prompt": f"Say {n}.", "answer": n}) for n in range(start, start + rows)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")


def new_run(folder: Path, model: Path, name: str, **changed: object) -> Path:
    """A run of two steps per rollout on two ranks, with a reward that teaches something."""
    write_data(folder)
    settings = {
        "nproc_per_node": 2,
        "global_batch_size": 16,
        "steps_per_generation": 2,
        "train_iters": STEPS,
        "reward_funcs": [f"{PLUGINS}:early_letters"],
        "lr": 2e-3,
        "epsilon": 0.02,
        "save_steps": 1,
        "save_total_limit": 2,
        "eval": str(folder / "eval.jsonl"),
        "chat_template_kwargs": {"loud": True},
    }
    return write_run(folder, model, name=name, **(settings | changed))


@pytest.fixture(scope="module")
def finished(tiny, tmp_path_factory):
    """A run that nobody interrupted: its directory and what was printed."""
    folder = tmp_path_factory.mktemp("finished")
    done = call("submit", new_run(folder, tiny("llama"), "whole"))
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "runs" / "whole", done.stderr


def test_what_a_run_leaves_behind(finished):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run_dir, printed = finished
    rows = metrics(run_dir)
    assert sorted(rows) == list(range(1, STEPS + 1))
    assert len({row["grad_norm"] for row in rows.values()}) == STEPS, "every step has a gradient of its own"
    assert rows[2]["clip_ratio/region_mean"] > 0, "the second step of a rollout is off-policy"
    assert rows[1]["mismatch/logprob_abs_diff"] < 1e-4
    evaluations = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in evaluations if "eval/early_letters/mean" in row] == [0, STEPS]

    completions = list(read_completions(run_dir / "completions"))
    assert len(completions) == STEPS // 2 * 32
    groups = {(row["step"], row["prompt_id"]) for row in completions}
    assert len(groups) == STEPS // 2 * 8
    for group in groups:
        members = [row for row in completions if (row["step"], row["prompt_id"]) == group]
        assert abs(sum(row["advantage"] for row in members)) < 1e-4

    assert sorted(path.name for path in (run_dir / "checkpoints").iterdir()) == ["step_00000005", "step_00000006"]
    assert len(list((run_dir / ".cache" / "prompts").iterdir())) == len(["train", "eval"])
    assert list((run_dir / "tensorboard").glob("events.*"))
    assert "export" in printed and "Traceback" not in printed
    log = (run_dir / "attempt_1" / "rank_0.log").read_text()
    assert "Reloading and processing weights" in log and "Failed to load weights" not in log, "nothing that alarms"
    model = AutoModelForCausalLM.from_pretrained(run_dir / "export", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(run_dir / "export")
    chat = [{"role": "user", "content": "Say 3."}]
    said = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert said.endswith("LOUD assistant:"), "the export tells its template what training told it"
    assert model.generate(torch.tensor([tokenizer("Say 3.")["input_ids"]]), max_new_tokens=2).shape[1] > 6


def test_interrupted_and_killed_runs_resume_exactly(finished, tiny, tmp_path, monkeypatch):
    """Ctrl-C, then kill -9 at a random step, in the middle of a rollout or between two: the same losses as without.

    Here everything that trains leaves its memory during rollouts, too, which must change nothing either.
    """
    whole, _ = finished
    monkeypatch.setenv("GRPO_HPC_CACHE", str(tmp_path / "cache"))
    rng = random.Random()
    first, second = sorted(rng.sample(range(1, STEPS), 2))
    run_dir = tmp_path / "runs" / "broken"
    launcher = start("submit", new_run(tmp_path, tiny("llama"), "broken", offload_model=True, offload_optimizer=True))
    wait_for_step(run_dir, first, launcher)
    launcher.send_signal(signal.SIGINT)
    printed = launcher.communicate(timeout=120)[0]
    assert launcher.returncode == 0, printed
    assert "grpo-hpc resume" in printed and "Traceback" not in printed

    if max(metrics(run_dir)) < STEPS:
        launcher = start("resume", run_dir)
        wait_for_step(run_dir, max(second, max(metrics(run_dir)) + 1), launcher)
        os.killpg(launcher.pid, signal.SIGKILL)
        launcher.wait()
        time.sleep(2)  # the kernel ends the ranks of a killed launcher
        again = call("resume", run_dir)
        assert again.returncode == 0, again.stdout + again.stderr

    got, want = metrics(run_dir), metrics(whole)
    assert sorted(got) == sorted(want), f"interrupted after step {first}, killed after step {second}"
    for step, row in want.items():
        assert row.keys() - VOLATILE == got[step].keys() - VOLATILE
        for name in row.keys() - VOLATILE:
            assert got[step][name] == pytest.approx(row[name], rel=1e-6, abs=1e-9), f"{name} of step {step}"
    exported, expected = (load_file(path / "export" / "model.safetensors") for path in (run_dir, whole))
    assert all(value.equal(expected[name]) for name, value in exported.items())
    got, want = (list(read_completions(path / "completions")) for path in (run_dir, whole))
    assert len(got) == len(want)
    assert len(list((tmp_path / "cache" / "prompts").iterdir())) == len(["train", "eval"])
    assert not (run_dir / ".cache").exists()


def test_a_run_of_adapters_resumes_exactly(tiny, tmp_path):
    """Stopped in the middle of a rollout; checkpoints hold adapters and their optimizer state alone."""
    lora = {"tuner_type": "lora", "lora_rank": 4, "lora_dropout": 0.1, "nproc_per_node": 1, "eval": None}
    settings = lora | {"train_iters": 4, "lr": 2e-2}
    done = call("submit", new_run(tmp_path, tiny("llama"), "whole", **settings, save_total_limit=None))
    assert done.returncode == 0, done.stdout + done.stderr
    launcher = start("submit", new_run(tmp_path, tiny("llama"), "broken", **settings))
    run_dir = tmp_path / "runs" / "broken"
    wait_for_step(run_dir, 1, launcher)
    launcher.send_signal(signal.SIGINT)
    assert launcher.wait(120) == 0
    if max(metrics(run_dir)) < 4:
        again = call("resume", run_dir)
        assert again.returncode == 0, again.stdout + again.stderr
    want = metrics(tmp_path / "runs" / "whole")
    for step, row in metrics(run_dir).items():
        assert row.keys() - VOLATILE == want[step].keys() - VOLATILE
        for name in row.keys() - VOLATILE:
            assert row[name] == pytest.approx(want[step][name], rel=1e-6, abs=1e-9), f"{name} of step {step}"
    files = [load_file(tmp_path / "runs" / n / "export" / "adapter_model.safetensors") for n in ("broken", "whole")]
    assert all(value.equal(files[1][name]) for name, value in files[0].items())
    assert "loud" in (run_dir / "export" / "chat_template.jinja").read_text().partition("messages")[0]


def test_a_stop_in_the_middle_of_a_rollout_is_obeyed_at_once_and_loses_nothing(tiny, tmp_path, monkeypatch):
    """Two completions at a time, so a rollout is long; what has ended is neither sampled nor scored again."""
    calls = tmp_path / "calls"
    keys = {"nproc_per_node": 1, "train_iters": 2, "save_steps": None, "save_total_limit": None, "eval": None}
    keys |= {"max_completion_length": 400, "vllm_max_model_len": 500, "vllm_max_num_seqs": 2}
    keys |= {"reward_funcs": [f"{PLUGINS}:counts"]}
    monkeypatch.setenv("CALLS", str(calls))
    keys |= {"max_tokens_per_micro_batch": 4000, "micro_batch_size": None}
    launcher = start("submit", new_run(tmp_path, tiny("llama"), "broken", **keys))
    deadline = time.monotonic() + 240
    while not calls.exists() or len(calls.read_text().splitlines()) < 5:
        assert launcher.poll() is None and time.monotonic() < deadline, launcher.communicate()[0]
        time.sleep(0.05)
    launcher.send_signal(signal.SIGINT)
    assert launcher.wait(120) == 0
    run_dir = tmp_path / "runs" / "broken"
    events = [json.loads(line) for line in (run_dir / "events.jsonl").read_text().splitlines()]
    kept = np.load(run_dir / "checkpoints" / "step_00000000" / "rollout" / "table.npz")["carried"]
    assert 5 <= len(kept) < 32 and not np.isnan(kept["reward"]).any(), "it was stopped in its rollout"
    assert not (run_dir / "metrics.jsonl").exists() and any(event["event"] == "stopped" for event in events)
    before = calls.read_text().splitlines()
    assert before and len(before) == len(kept)
    again = call("resume", run_dir)
    assert again.returncode == 0, again.stdout + again.stderr
    calls_made = calls.read_text().splitlines()
    assert len(calls_made) == 32, "every completion is scored once"
    calls.unlink()
    whole = call("submit", new_run(tmp_path, tiny("llama"), "whole", **keys))
    assert whole.returncode == 0, whole.stdout + whole.stderr
    assert sorted(calls.read_text().splitlines()) == sorted(calls_made), "the same completions as without a stop"
    want = metrics(tmp_path / "runs" / "whole")
    for step, row in metrics(run_dir).items():
        for name in {"loss", "grad_norm", "reward/mean", "completions/tokens"} & row.keys():
            assert row[name] == pytest.approx(want[step][name], rel=1e-3, abs=1e-5), f"{name} of step {step}"


def start(*args: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        cli(*args),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def wait_for_step(run_dir: Path, step: int, launcher: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        if (run_dir / "metrics.jsonl").exists() and max(metrics(run_dir), default=0) >= step:
            return
        assert launcher.poll() is None, launcher.communicate()[0]
        time.sleep(0.05)
    raise AssertionError(f"step {step} was not reached")


@pytest.mark.parametrize("layout", ["tensor_model_parallel_size", "pipeline_model_parallel_size"])
def test_layouts_sample_and_learn_the_same(layout, finished, tiny, tmp_path):
    """Seeds follow prompts, not ranks: under another layout the whole run is the same, to fp32 rounding."""
    run = new_run(
        tmp_path, tiny("llama"), "other", **{layout: 2}, train_iters=4, save_steps=None, save_total_limit=None
    )
    done = call("submit", run)
    assert done.returncode == 0, done.stdout + done.stderr
    got, want = metrics(tmp_path / "runs" / "other"), metrics(finished[0])
    for step, row in got.items():
        for name in {"loss", "reward/mean", "grad_norm"} & row.keys():
            assert row[name] == pytest.approx(want[step][name], rel=1e-3, abs=1e-5), f"{name} of step {step}"


@pytest.mark.parametrize(
    ("function", "said"),
    [("raises", "this reward divides by nothing (prompt 'Say"), ("not_a_number", "completions got a score")],
)
def test_a_broken_reward_ends_the_run_with_one_message(function, said, tiny, tmp_path):
    done = call("submit", new_run(tmp_path, tiny("llama"), "broken", reward_funcs=[f"{PLUGINS}:{function}"]))
    assert done.returncode == 2, done.stdout + done.stderr
    assert said in done.stderr and function in done.stderr and "Traceback" not in done.stdout + done.stderr


def test_mistakes_are_found_before_anything_starts(finished, tiny, tmp_path):
    model, (whole, _) = tiny("llama"), finished

    def refused(*said: str, **changed: object) -> None:
        run = new_run(tmp_path, model, "mistake", **changed)
        if changed.get("train") == str(tmp_path / "bad.jsonl"):
            (tmp_path / "bad.jsonl").write_text('{"prompt": "Say 1."}\nSay 2.\n')
        done = call("submit", run)
        assert done.returncode == 2, done.stdout + done.stderr
        assert all(words in done.stderr for words in said) and "Traceback" not in done.stderr, done.stderr
        assert not (tmp_path / "runs").exists()

    refused("bad.jsonl:2", "JSON", train=str(tmp_path / "bad.jsonl"))
    refused("missing-model", path=str(tmp_path / "missing-model"))
    refused("global_batch_size", "18", global_batch_size=18)
    refused("early_leters", "early_letters", reward_funcs=[f"{PLUGINS}:early_leters"])

    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*")}
    done = call("submit", new_run(whole.parent.parent, model, "whole"))
    assert done.returncode == 2 and "exists already" in done.stderr and "resume" in done.stderr
    assert {path: path.stat().st_mtime_ns for path in whole.rglob("*")} == before, "nothing is overwritten"
