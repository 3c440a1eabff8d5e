"""Measure training steps of a random model of a real shape, beside TRL and vLLM alone on the same work.

    python tools/bench_step.py --model qwen3-4b --prompts 16 --generations 8 --peer trl --peer vllm --out bench.json
    python tools/bench_step.py --model toy --device cpu --prompts 4 --prompt-length 16 --completion-length 8

Ours is the real trainer, started by ``grpo-hpc submit`` with the given keys; figures are read from its metrics. Peers
run one after another, alone on the machine. ``--set key=value`` reaches every key of the run file.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import yaml

from tools.bench.random_model import SHAPES, save_prompts, set_stop_tokens, stop_tokens_for
from tools.bench.work import H200_BF16_TFLOPS, Flops, Work

HERE = Path(__file__).parent
PHASES = ("sync", "rollout", "reward", "logprob", "train")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; print a table, and write everything as JSON with ``--out``."""
    options = _parser().parse_args(argv)
    folder = Path(options.folder) / options.model
    work = Work(str(folder), options.prompts, options.generations, options.prompt_length, options.completion_length,
                options.steps, options.warmup, options.memory_share)  # fmt: skip
    # in a process of its own: whoever makes the model on a GPU keeps some of the memory that is to be measured
    maker = [sys.executable, "-m", "tools.bench.random_model", str(work.model), options.model]
    subprocess.run(maker, check=True, cwd=HERE.parent, stderr=subprocess.DEVNULL)
    config = json.loads((work.model / "config.json").read_text())
    spread = options.lengths == "spread"
    set_stop_tokens(work.model, stop_tokens_for(work.completion_length, config["vocab_size"]) if spread else 0)
    save_prompts(work.data, work.prompts * work.steps, work.prompt_length, config["vocab_size"])
    saved = work.save()
    result: dict[str, Any] = {"model": options.model, "work": json.loads(saved.read_text()), "set": options.set,
                              "lengths": options.lengths}  # fmt: skip
    result["ours"] = run_ours(work, options, Flops.of(config))
    _show(result, options.out)
    for peer in options.peer:
        result[peer] = run_peer(peer, saved, work, options.trl_micro)
        _show(result, options.out)
    return 0 if "error" not in result["ours"] else 1


def _show(result: dict[str, Any], out: str | None) -> None:
    """After each part, so that a benchmark that is stopped leaves what it has."""
    print(table(result), flush=True)
    if out:
        Path(out).write_text(json.dumps(result, indent=1) + "\n")


def run_ours(work: Work, options: argparse.Namespace, flops: Flops) -> dict[str, Any]:
    """Our trainer's mean figures over the counted steps, or what stopped it."""
    name = "bench_" + options.model.replace(".", "_")
    file = Path(work.folder) / f"{name}.yaml"
    file.write_text(yaml.safe_dump(run_file(name, work, options)))
    command = [sys.executable, "-m", "grpo_hpc.cli", "submit", str(file), "--fresh", *options.set]
    done = subprocess.run(command, capture_output=True, text=True, cwd=HERE.parent)
    if done.returncode:
        return {"error": (done.stdout + done.stderr)[-3000:]}
    rows = [json.loads(line) for line in (Path(work.folder) / name / "metrics.jsonl").read_text().splitlines()]
    counted = [row for row in rows if "time/step" in row][work.warmup :]
    mean = {key: fmean(row[key] for row in counted if row.get(key) is not None) for key in counted[-1]}
    length = mean["completions/mean_length"]
    trained = flops.train(work.prompt_length, round(length)) * work.completions / options.gpus
    return {
        "step_s": mean["time/step"],
        **{f"{phase}_s": mean.get(f"time/{phase}", 0.0) for phase in PHASES},
        "tokens_per_s": work.tokens(length) / mean["time/step"],
        "rollout_tokens_per_s": length * work.completions / mean["time/rollout"],
        "train_tokens_per_s": work.tokens(length) / mean["time/train"],
        "train_mfu": trained / mean["time/train"] / (H200_BF16_TFLOPS * 1e12),
        "mean_length": length,
        "mismatch": mean["mismatch/logprob_abs_diff"],
        "peak_gib": mean["memory/peak_gib"],
    }


def run_file(name: str, work: Work, options: argparse.Namespace) -> dict[str, Any]:
    """Our run file for this work: one optimizer step per rollout, everything trained on."""
    precision = "float32" if options.device == "cpu" else "bfloat16"
    return {
        "name": name,
        "output_dir": work.folder,
        "model": {"path": str(work.model), "dtype": precision},
        "data": {"train": str(work.data)},
        "resources": {"device": options.device, "nproc_per_node": options.gpus},
        "batch": {
            "global_batch_size": work.completions,
            "num_generations": work.generations,
            "train_iters": work.steps,
        },
        "rollout": {
            **({} if options.device == "cpu" else {"vllm_gpu_memory_utilization": work.memory_share}),
            "vllm_dtype": precision,
            "vllm_max_model_len": work.prompt_length + work.completion_length,
            "max_completion_length": work.completion_length,
        },
        "rewards": {"reward_funcs": [f"{HERE / 'bench' / 'reward.py'}:parity"]},
        "optimizer": {"lr": 1e-6},
        "checkpoint": {"save_last": False, "export": False},
    }


def run_peer(peer: str, work_file: Path, work: Work, micro_batches: Sequence[int]) -> dict[str, Any]:
    """The peer's figures; of TRL the best over ``micro_batches`` and with or without activation checkpointing."""
    if peer == "vllm":
        return _last_json([sys.executable, str(HERE / "bench" / "peer_vllm.py"), str(work_file)])
    found = {}
    for micro in micro_batches:
        for flag in ((), ("--checkpointing",)):
            label = f"micro_batch={micro}" + (" checkpointing" if flag else "")
            command = [sys.executable, str(HERE / "bench" / "peer_trl.py"), str(work_file), str(micro), *flag]
            found[label] = _last_json(command)
            if "error" not in found[label]:
                break  # without checkpointing is the faster of the two when it fits
    best = min(
        (r for r in found.values() if "error" not in r), key=lambda r: r["step_s"], default={"error": "see tried"}
    )
    return best | {"tried": found}


def _last_json(command: list[str]) -> dict[str, Any]:
    done = subprocess.run(command, capture_output=True, text=True, cwd=HERE.parent)
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        return {"error": (done.stdout + done.stderr)[-3000:]}
    return dict(json.loads(lines[-1]))


def table(result: dict[str, Any]) -> str:
    """The figures side by side, in Markdown."""
    names = [name for name in ("ours", "trl", "vllm") if name in result]
    errors = [f"{name}: {result[name]['error']}" for name in names if "error" in result[name]]
    keys = ["step_s", *(f"{phase}_s" for phase in PHASES), "mean_length", "rollout_tokens_per_s", "tokens_per_s",
            "train_mfu", "mismatch", "peak_gib"]  # fmt: skip
    rows = [f"| {key} | " + " | ".join(_figure(result[name].get(key)) for name in names) + " |" for key in keys]
    head = "| | " + " | ".join(names) + " |\n|---" + "|---" * len(names) + "|"
    speeds = {name: result[name]["tokens_per_s"] for name in names if "tokens_per_s" in result[name]}
    ratio = (
        f"\nours / TRL, tokens per second: {speeds['ours'] / speeds['trl']:.2f}"
        if {"trl", "ours"} <= set(speeds)
        else ""
    )
    return "\n".join([head, *rows, *errors]) + ratio


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:,.3g}" if value < 1000 else f"{value:,.0f}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=sorted(SHAPES), default="qwen3-4b")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--gpus", type=int, default=1, help="training processes")
    parser.add_argument("--prompts", type=int, default=16, help="per step")
    parser.add_argument("--generations", type=int, default=8)
    parser.add_argument("--prompt-length", type=int, default=256)
    parser.add_argument("--completion-length", type=int, default=768)
    parser.add_argument(
        "--lengths", choices=("equal", "spread"), default="equal", help="spread: half of the longest on average"
    )
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--warmup", type=int, default=2, help="first steps that are not counted")
    parser.add_argument("--memory-share", type=float, default=0.3, help="of the GPU, for vLLM")
    parser.add_argument("--peer", action="append", choices=("trl", "vllm"), default=[])
    parser.add_argument(
        "--trl-micro", type=int, nargs="+", default=[8], help="micro-batch sizes that TRL may choose from"
    )
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="any key of our run file")
    parser.add_argument("--folder", default="runs/bench")
    parser.add_argument("--out", help="write everything as JSON")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
