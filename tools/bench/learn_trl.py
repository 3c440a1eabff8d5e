"""TRL's GRPOTrainer with colocated vLLM on one of our run files. What it learned is written as it goes.

    python tools/bench/learn_trl.py RECORD.json RUN.yaml [key=value ...]

Every setting is taken from the resolved run file, so that both trainers have the same. TRL's weights and Adam's moments
are float32 under bfloat16 autocast, as ours are; its vLLM loads the folder's precision, bfloat16.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from grpo_hpc.config import RunConfig, load_run
from grpo_hpc.errors import ConfigError
from grpo_hpc.files import write_atomically
from grpo_hpc.jobs.ports import claimed_port, job_ports
from grpo_hpc.rewards.builtin import exact_number


def trl_arguments(cfg: RunConfig) -> dict[str, Any]:
    """GRPOConfig's arguments that mean what the run file says.

    Raises:
        ConfigError: the run file asks for something that this comparison does not translate.
    """
    b, r, a, o = cfg.batch, cfg.rollout, cfg.algorithm, cfg.optimizer
    _only_known(cfg)
    micro = completions_at_a_time(cfg)
    return {
        "seed": cfg.seed, "max_steps": b.train_iters, "bf16": cfg.model.dtype == "bfloat16",
        "model_init_kwargs": {"dtype": "float32"}, "gradient_checkpointing": False,
        "per_device_train_batch_size": micro, "num_generations": b.num_generations,
        "gradient_accumulation_steps": b.global_batch_size // micro, "num_iterations": b.num_iterations,
        "learning_rate": o.lr, "lr_scheduler_type": o.lr_decay_style, "warmup_steps": o.lr_warmup_iters,
        "weight_decay": o.weight_decay, "max_grad_norm": o.clip_grad, "optim": "adamw_torch_fused",
        "adam_beta1": o.adam_beta1, "adam_beta2": o.adam_beta2, "adam_epsilon": o.adam_eps,
        "loss_type": a.loss_type, "scale_rewards": a.scale_rewards, "beta": a.beta, "epsilon": a.epsilon,
        "epsilon_high": a.epsilon_high, "importance_sampling_level": a.importance_sampling_level,
        "mask_truncated_completions": a.overlong_filter, "vllm_importance_sampling_correction": False,
        "temperature": r.temperature, "top_p": r.top_p, "top_k": max(0, r.top_k), "repetition_penalty": 1.0,
        "max_completion_length": r.max_completion_length, "shuffle_dataset": cfg.data.shuffle,
        "use_vllm": True, "vllm_mode": "colocate", "vllm_max_model_length": r.vllm_max_model_len,
        "vllm_gpu_memory_utilization": r.vllm_gpu_memory_utilization,
        "logging_steps": 1, "save_strategy": "no", "report_to": [], "disable_tqdm": True,
    }  # fmt: skip


def completions_at_a_time(cfg: RunConfig) -> int:
    """Sequences in a forward pass of TRL's, which counts no tokens: the most that fill our budget at full length."""
    b, longest = cfg.batch, cfg.rollout.vllm_max_model_len
    if b.max_tokens_per_micro_batch is None or longest is None:
        return b.micro_batch_size
    most = b.max_tokens_per_micro_batch // longest
    return max(n for n in range(1, b.global_batch_size + 1) if b.global_batch_size % n == 0 and n <= max(1, most))


_TRANSLATED = {"loss_type", "scale_rewards", "beta", "epsilon", "epsilon_high", "importance_sampling_level",
               "overlong_filter"}  # fmt: skip


def _only_known(cfg: RunConfig) -> None:
    fresh = type(cfg.algorithm)()
    changed = {key for key, value in cfg.algorithm if value != getattr(fresh, key)} - _TRANSLATED
    if cfg.optimizer.lr_decay_style != "constant" or cfg.optimizer.lr_warmup_iters:
        changed.add("lr_decay_style, lr_warmup_iters")
    if cfg.data.system or cfg.rewards.reward_funcs != ["exact_number"] or cfg.tuner.tuner_type != "full":
        changed.add("system, reward_funcs, tuner_type")
    if cfg.rollout.vllm_kv_cache_gib is not None:
        changed.add("vllm_kv_cache_gib")
    if (cfg.batch.generation_batch_size or cfg.batch.global_batch_size) != cfg.batch.global_batch_size:
        changed.add("generation_batch_size")
    if changed:
        raise ConfigError(
            f"the comparison with TRL does not translate {', '.join(sorted(changed))}; leave the defaults"
        )


def read_rows(path: str) -> list[dict[str, Any]]:
    """Rows as TRL wants them: the chat under ``prompt``."""
    rows = [json.loads(line) for line in Path(path).read_text().splitlines()]
    return [{"prompt": row["messages"], "answer": row["answer"]} for row in rows]


def exact(completions: list[list[dict[str, str]]], answer: list[Any], **_: Any) -> list[float | None]:
    """Our ``exact_number`` on TRL's chats."""
    return exact_number([chat[0]["content"] for chat in completions], answer)


def greedy_accuracy(trainer: Any, tokenizer: Any, rows: list[dict[str, Any]], length: int) -> float:
    """Mean reward of one greedy answer per row, sampled by TRL's engine with the newest weights."""
    import torch
    from vllm import SamplingParams

    texts = [tokenizer.apply_chat_template(r["prompt"], add_generation_prompt=True, tokenize=False) for r in rows]
    prompts = [{"prompt_token_ids": tokenizer.encode(text, add_special_tokens=False)} for text in texts]
    with torch.no_grad():
        trainer.vllm_generation.sync_weights()
    greedy = SamplingParams(temperature=0.0, max_tokens=length)
    answers = trainer.vllm_generation.llm.generate(prompts, sampling_params=greedy, use_tqdm=False)
    found = [tokenizer.decode(answer.outputs[0].token_ids, skip_special_tokens=True) for answer in answers]
    rewards = exact_number(found, [row["answer"] for row in rows])
    return sum(reward or 0.0 for reward in rewards) / len(rows)


def main(record_file: Path, cfg: RunConfig) -> None:
    """Train as ``cfg`` says, and keep ``record_file`` up to date."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    from datasets import Dataset
    from transformers import AutoTokenizer, TrainerCallback, set_seed
    from trl.trainer.grpo_config import GRPOConfig
    from trl.trainer.grpo_trainer import GRPOTrainer

    settings = trl_arguments(cfg)
    tokenizer = AutoTokenizer.from_pretrained(cfg.model.path)
    held_out = read_rows(cfg.data.eval) if cfg.data.eval else []
    record: dict[str, Any] = {"who": "trl", "seed": cfg.seed, "settings": settings, "steps": [], "held_out": {}}

    class Record(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            self.evaluate(0)

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.started = time.perf_counter()

        def on_step_end(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
            self.seconds = time.perf_counter() - self.started

        def on_log(self, args: Any, state: Any, *_: Any, **given: Any) -> None:
            logs: dict[str, Any] = given["logs"]
            if "reward" not in logs:
                return  # the summary at the end
            record["steps"].append({
                "step": state.global_step, "reward": logs["reward"], "grad_norm": logs.get("grad_norm"),
                "length": logs.get("completions/mean_length"), "seconds": self.seconds,
            })  # fmt: skip
            every = cfg.evaluation.eval_steps or cfg.batch.train_iters
            if state.global_step % every == 0 or state.global_step == cfg.batch.train_iters:
                self.evaluate(state.global_step)
            write_atomically(record_file, json.dumps(record))

        def evaluate(self, step: int) -> None:
            if held_out:
                accuracy = greedy_accuracy(trainer, tokenizer, held_out, cfg.rollout.max_completion_length)
                record["held_out"][str(step)] = accuracy
            write_atomically(record_file, json.dumps(record))

    trainer = GRPOTrainer(
        model=cfg.model.path, reward_funcs=exact, args=GRPOConfig(output_dir=f"{record_file}.trl", **settings),
        train_dataset=Dataset.from_list(read_rows(cfg.data.train)), processing_class=tokenizer, callbacks=[Record()],
    )  # fmt: skip
    set_seed(cfg.seed)  # the engine was made with seed 0 and left its generator there: every run would sample alike
    trainer.train()


if __name__ == "__main__":
    run_file = load_run(sys.argv[2], sys.argv[3:])
    with claimed_port(job_ports(os.getpid())) as port:  # several may run on one machine
        place = {
            "RANK": "0",
            "LOCAL_RANK": "0",
            "WORLD_SIZE": "1",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        os.environ.update(place)
        main(Path(sys.argv[1]), run_file)
