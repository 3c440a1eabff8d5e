"""The learning comparison: its maths, its records of our runs, its report, and that TRL gets our settings."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from grpo_hpc.config import load_run
from grpo_hpc.errors import ConfigError
from grpo_hpc.runs.run_dir import RunDir
from tools.bench.learn_trl import completions_at_a_time, exact, read_rows, trl_arguments
from tools.bench.learning_report import accuracies, band, read_records, result, rewards, stays_above
from tools.bench_learning import Run, lane, main, our_record
from tools.demo_rows import write_sets
from tools.make_addition import row

ROOT = Path(__file__).parents[3]
GPU = str(ROOT / "configs" / "quickstart_gpu.yaml")


def record(who="ours", seed=1, steps=10, shift=0.0, **more):
    return {
        "who": who,
        "seed": seed,
        "steps": [
            {"step": n, "reward": n / 10 + shift, "seconds": float(n), "grad_norm": 1.0, "length": 2.0}
            for n in range(1, steps + 1)
        ],
        "held_out": {"0": 0.25, str(steps): 0.9375},
        "seconds": 100.0,
        "versions": {"torch": "2.11.0"},
    } | more


def test_band_is_over_shared_steps():
    assert band([{1: 0.0, 2: 1.0}, {1: 0.5, 2: 0.0, 3: 9.0}, {2: 0.5, 1: 0.25}]) == {
        1: (0.0, 0.25, 0.5),
        2: (0.0, 0.5, 1.0),
    }


@pytest.mark.parametrize(
    ("course", "step"),
    [
        ({0: 0.3, 10: 0.95, 20: 0.8, 30: 0.9, 40: 1.0}, 30),
        ({0: 0.3, 10: 0.95, 20: 0.8}, None),
        ({0: 0.9}, 0),
        ({}, None),
    ],
)
def test_the_goal_counts_from_where_it_stays(course, step):
    assert stays_above(course) == step


def test_result():
    found = result(record())
    assert (found.first, found.last) == pytest.approx((0.15, 0.95))
    assert (found.before, found.after, found.step_seconds, found.seconds) == (0.25, 0.9375, 5.5, 100.0)
    assert result(record(held_out={"0": 0.25, "5": 0.8})).after is None, "measured before the end is not the end"


def test_report(tmp_path):
    runs = [record("trl", 1, shift=-0.1), record("ours", 2, shift=-0.05), record("ours", 1),
            record("trl", 3, steps=0, held_out={}, error="boom"),
            {k: v for k, v in record("trl", 4).items() if k not in ("seconds", "versions")}]  # fmt: skip
    for run in runs:
        (tmp_path / f"{run['who']}_seed{run['seed']}.json").write_text(json.dumps(run))
    found = [(r["who"], r["seed"]) for r in read_records(tmp_path)]
    assert found == [("ours", 1), ("ours", 2), ("trl", 1), ("trl", 3), ("trl", 4)]
    assert main(["report", str(tmp_path), str(tmp_path / "out")]) == 0
    text = (tmp_path / "out.md").read_text()
    assert "| grpo-hpc | 1 | 10 | 0.150 | 0.950 | 6.3 | 0.250 | 0.938 | 10 | 5.50 s | 1 m 40 s |" in text
    assert "| grpo-hpc | **mean** | 10 | 0.125 | 0.925 |" in text
    assert "| TRL | 4 | 10 | 0.150 | 0.950 | 6.3 | 0.250 | 0.938 | 10 | 5.50 s | - |" in text, "it was stopped"
    assert "TRL with seed 3 stopped after 0 steps" in text and "boom" in text
    assert "2 of 2 runs end at 0.9 or more" in text
    assert (tmp_path / "out.png").stat().st_size > 10_000


def test_report_of_nothing(tmp_path, capsys):
    assert main(["report", str(tmp_path), str(tmp_path / "out")]) == 2
    assert "holds no records" in capsys.readouterr().err


def test_our_record(tmp_path):
    run_dir = RunDir(tmp_path)
    assert our_record(run_dir) == {"steps": [], "held_out": {}}
    step = {"step": 1, "reward/mean": 0.5, "grad_norm": None, "completions/mean_length": 3.0, "time/step": 0.75}
    rows = [{"step": 0, "eval/exact_number/mean": 0.25}, step]
    run_dir.metrics.write_text("".join(json.dumps(row | {"time": 1.0}) + "\n" for row in rows))
    found = our_record(run_dir)
    assert found["steps"] == [{"step": 1, "reward": 0.5, "grad_norm": None, "length": 3.0, "seconds": 0.75}]
    assert rewards(found) == {1: 0.5} and accuracies(found) == {0: 0.25}


class _Script(Run):
    """A run whose program is a script."""

    script = ""

    def command(self):
        return [sys.executable, "-c", self.script, str(self.file)]


def made(tmp_path, seed, script):
    run = _Script("trl", seed, GPU, [], tmp_path, tmp_path, {})
    run.script = script
    return run


PROGRAM = """
import json, sys, time
from pathlib import Path
own, first, second = map(Path, (sys.argv[1], "{first}", "{second}"))
if own == second and not first.exists():
    sys.exit("started before the engine of the first was up")
own.write_text(json.dumps(dict(steps=[], held_out={{"0": 0.5}})))
until = time.monotonic() + 30
while not second.exists():  # the first ends only when the second runs beside it
    time.sleep(0.05)
    if time.monotonic() > until:
        sys.exit("nothing ran beside it")
"""


def test_runs_on_a_gpu_start_one_after_another_and_a_failed_start_is_tried_again(tmp_path, capsys):
    script = PROGRAM.format(first=tmp_path / "trl_seed1.json", second=tmp_path / "trl_seed2.json")
    runs = [made(tmp_path, 1, script), made(tmp_path, 2, script), made(tmp_path, 3, "1/0")]
    lane(runs, parallel=2)
    records = [json.loads(run.file.read_text()) for run in runs]
    assert [record.get("error") for record in records[:2]] == [None, None]
    assert runs[2].tries == 3 and "ZeroDivisionError" in records[2]["error"] and records[2]["seed"] == 3
    assert capsys.readouterr().out.count("tried again") == 2


def test_trl_reads_the_same_rows_and_reward(tmp_path):
    write_sets(tmp_path, [], [row(4, 8)])
    rows = read_rows(str(tmp_path / "eval.jsonl"))
    assert rows[0]["answer"] == 12 and rows[0]["prompt"][0]["role"] == "system"
    assert exact([[{"content": "It is 12."}], [{"content": "13"}]], answer=[12, 12], prompts=None) == [1.0, 0.0]


@pytest.mark.parametrize("key", ["delta=3.0", "lr_warmup_iters=3", "tuner_type=lora", "entropy_coef=0.1"])
def test_what_is_not_translated_is_said(key):
    with pytest.raises(ConfigError, match=key.split("=")[0]):
        trl_arguments(load_run(GPU, [key]))


@pytest.mark.parametrize(
    ("keys", "size"),
    [([], 128), (["max_tokens_per_micro_batch=700"], 4), (["max_tokens_per_micro_batch=128"], 1),
     (["max_tokens_per_micro_batch=null", "micro_batch_size=16"], 16)],
)  # fmt: skip
def test_trl_has_as_many_sequences_at_a_time_as_our_tokens_are(keys, size):
    cfg = load_run(GPU, keys)
    assert completions_at_a_time(cfg) == size
    arguments = trl_arguments(cfg)
    assert arguments["per_device_train_batch_size"] * arguments["gradient_accumulation_steps"] == 256


def test_settings_are_equal():
    """TRL's own configuration, built from ours, holds our values, also where both have a default of their own."""
    trl = pytest.importorskip("trl")
    cfg = load_run(GPU, ["seed=3", "top_p=0.9", "epsilon_high=0.28", "weight_decay=0.1", "num_iterations=2"])
    arguments = trl_arguments(cfg) | {"bf16": False, "use_cpu": True, "output_dir": os.devnull}
    theirs = trl.GRPOConfig(**arguments)
    b, o, a, r = cfg.batch, cfg.optimizer, cfg.algorithm, cfg.rollout
    assert theirs.generation_batch_size == b.global_batch_size, "one optimizer step per rollout"
    assert theirs.per_device_train_batch_size * theirs.gradient_accumulation_steps == b.global_batch_size
    assert theirs.steps_per_generation == theirs.gradient_accumulation_steps
    pairs = [
        (theirs.learning_rate, o.lr), (theirs.adam_beta1, o.adam_beta1), (theirs.adam_beta2, o.adam_beta2),
        (theirs.adam_epsilon, o.adam_eps), (theirs.weight_decay, o.weight_decay), (theirs.max_grad_norm, o.clip_grad),
        (str(theirs.lr_scheduler_type.value), o.lr_decay_style), (theirs.warmup_steps, o.lr_warmup_iters),
        (theirs.max_steps, b.train_iters), (theirs.num_generations, b.num_generations), (theirs.seed, cfg.seed),
        (theirs.num_iterations, b.num_iterations), (theirs.loss_type, a.loss_type), (theirs.beta, a.beta),
        (theirs.scale_rewards, a.scale_rewards), (theirs.epsilon, a.epsilon), (theirs.epsilon_high, a.epsilon_high),
        (theirs.importance_sampling_level, a.importance_sampling_level), (theirs.temperature, r.temperature),
        (theirs.top_p, r.top_p), (theirs.top_k, max(0, r.top_k)), (theirs.entropy_coef, a.entropy_coef),
        (theirs.max_completion_length, r.max_completion_length), (theirs.delta, a.delta),
        (theirs.top_entropy_quantile, a.top_entropy_quantile), (theirs.sync_ref_model, a.sync_ref_model),
        (theirs.off_policy_mask_threshold, a.off_policy_sequence_mask_delta), (theirs.min_p, None),
        (theirs.mask_truncated_completions, a.overlong_filter), (theirs.chat_template_kwargs or None, None),
    ]  # fmt: skip
    assert [ours for _, ours in pairs] == [their for their, _ in pairs]


def test_trl_program_says_what_is_wrong():
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools/bench/learn_trl.py"), os.devnull, GPU, "lrr=1"],
        capture_output=True,
        text=True,
    )
    assert done.returncode and "lrr" in done.stderr
