"""TRL's GRPOTrainer with colocated vLLM on the benchmark's work. Prints one JSON object as its last line.

    python tools/bench/peer_trl.py WORK.json MICRO_BATCH [--checkpointing]

One process on one GPU: same model folder, prompts, batch, lengths, sampling, reward and memory share as ours.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from tools.bench.reward import parity
from tools.bench.work import Work


class Clock:
    """Seconds spent in named methods, per optimizer step."""

    def __init__(self) -> None:
        self.now: dict[str, float] = {}

    def around(self, owner: Any, method: str, name: str) -> None:
        original: Callable[..., Any] = getattr(owner, method)

        def timed(*args: Any, **kwargs: Any) -> Any:
            import torch

            torch.cuda.synchronize()
            started = time.perf_counter()
            result = original(*args, **kwargs)
            torch.cuda.synchronize()
            self.now[name] = self.now.get(name, 0.0) + time.perf_counter() - started
            return result

        setattr(owner, method, timed)


def main(work: Work, micro: int, checkpointing: bool) -> dict[str, Any]:
    with socket.socket() as free:  # another benchmark may run beside this one
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ.update(alone)
    import torch
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    rows = [{"prompt": json.loads(line)["messages"]} for line in work.data.read_text().splitlines()]
    longest = work.prompt_length + work.completion_length
    args = GRPOConfig(
        output_dir=str(Path(work.folder) / "trl"), max_steps=work.steps, bf16=True, learning_rate=1e-6, report_to=[],
        per_device_train_batch_size=micro, gradient_accumulation_steps=work.completions // micro,
        num_generations=work.generations, max_completion_length=work.completion_length, temperature=1.0, beta=0.0,
        loss_type="grpo", use_vllm=True, vllm_mode="colocate", vllm_gpu_memory_utilization=work.memory_share,
        vllm_max_model_length=longest, vllm_importance_sampling_correction=False, gradient_checkpointing=checkpointing,
        model_init_kwargs={"dtype": "bfloat16"}, logging_steps=1, save_strategy="no", optim="adamw_torch_fused",
    )  # fmt: skip
    clock, steps = Clock(), []

    class Steps(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            torch.cuda.synchronize()
            clock.now = {}
            self.started = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            torch.cuda.synchronize()
            steps.append(clock.now | {"step": time.perf_counter() - self.started})

    trainer = GRPOTrainer(model=str(work.model), reward_funcs=parity, args=args, train_dataset=Dataset.from_list(rows),
                          callbacks=[Steps()])  # fmt: skip
    clock.around(trainer.vllm_generation, "generate", "rollout")
    clock.around(trainer.vllm_generation, "sync_weights", "sync")
    clock.around(trainer, "_generate_and_score_completions", "generate_and_score")
    trainer.train()
    counted = steps[work.warmup :]
    lengths = [row["completions/mean_length"] for row in trainer.state.log_history if "completions/mean_length" in row]
    length = sum(lengths[work.warmup :]) / len(counted)
    mean = {name: sum(s.get(name, 0.0) for s in counted) / len(counted) for name in counted[-1]}
    return {
        "step_s": mean["step"],
        "mean_length": length,
        "tokens_per_s": work.tokens(length) / mean["step"],
        "rollout_s": mean["rollout"],
        "sync_s": mean["sync"],
        "train_s": mean["step"] - mean["generate_and_score"],
        "peak_gib": torch.cuda.max_memory_reserved() / 2**30,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work")
    parser.add_argument("micro", type=int)
    parser.add_argument("--checkpointing", action="store_true")
    options = parser.parse_args()
    print(json.dumps(main(Work.load(options.work), options.micro, options.checkpointing)), flush=True)
