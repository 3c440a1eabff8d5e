"""The runs that the planner is held against: shapes, lengths, layouts and ways to save memory, each under a minute.

Each has one optimizer step to warm up and two that count. ``frozen`` ones are measured after the planner was last
changed, so that they tell how it does on runs that it has not seen.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tools.bench.random_model import SHAPES

HERE = Path(__file__).parent
STEPS, WARMUP = 3, 1


@dataclass(frozen=True)
class Setting:
    """One run.

    Attributes:
        shape: of ``SHAPES``.
        completions: per optimizer step, in groups of 8.
        prompt, completion: tokens; completions run to their full length.
        keys: of the run file, by short name.
        memory_share: of a GPU for vLLM; None leaves the size of its KV cache to the plan.
    """

    shape: str
    completions: int
    prompt: int
    completion: int
    keys: dict[str, Any] = field(default_factory=dict)
    gpus: int = 1
    frozen: bool = False
    memory_share: float | None = 0.3

    @property
    def steps(self) -> int:
        """Optimizer steps, so that every kind of run makes ``STEPS`` rollouts."""
        return STEPS * int(self.keys.get("steps_per_generation", 1))


_EAGER = {"vllm_enforce_eager": True}  # CUDA graphs take 15 s to capture: a few settings have them
_ASLEEP = _EAGER | {"sleep_level": 2}
_PAIR = {"max_tokens_per_micro_batch": 8192, "vllm_gpu_memory_utilization": 0.2}
SETTINGS = {
    "small": Setting("qwen3-0.6b", 64, 896, 128, {"max_tokens_per_micro_batch": 8192}),
    "one": Setting("qwen3-1.7b", 64, 1920, 128, _EAGER | _PAIR),
    "sleep1-full": Setting(
        "qwen3-1.7b", 32, 3968, 128,
        _EAGER | {"max_tokens_per_micro_batch": 16384, "sleep_level": 1, "recompute_granularity": "full",
                  "vllm_gpu_memory_utilization": 0.4}),
    "lora": Setting(
        "qwen3-4b", 64, 1920, 128,
        _EAGER | {"max_tokens_per_micro_batch": 8192, "tuner_type": "lora", "lora_rank": 16, "lora_alpha": 32}),
    "reference": Setting(
        "qwen3-4b", 64, 896, 128,
        _ASLEEP | {"max_tokens_per_micro_batch": 4096, "beta": 0.04, "steps_per_generation": 2}),
    "tight": Setting("qwen3-4b", 64, 896, 128, _ASLEEP | {"max_tokens_per_micro_batch": 16384}),
    "runs-out-20k": Setting("qwen3-4b", 64, 896, 128, _ASLEEP | {"max_tokens_per_micro_batch": 20480}),
    "runs-out-awake": Setting(
        "qwen3-4b", 64, 896, 128,
        _EAGER | {"max_tokens_per_micro_batch": 8192, "vllm_gpu_memory_utilization": 0.5}),
    "experts": Setting("moe-3b", 64, 896, 128, _EAGER | _PAIR),
    "mixtral": Setting("mixtral-3b", 64, 896, 128, _EAGER | _PAIR),
    "latent": Setting("latent-3b", 64, 896, 128, _EAGER | _PAIR),
    "offload": Setting(
        "qwen3-4b", 64, 896, 128,
        _EAGER | {"max_tokens_per_micro_batch": 8192, "sleep_level": 1, "offload_model": True,
                  "offload_optimizer": True, "recompute_granularity": "full", "vllm_gpu_memory_utilization": 0.5}),
    "half-moments": Setting(
        "qwen3-4b", 64, 896, 128,
        _ASLEEP | {"max_tokens_per_micro_batch": 8192, "use_precision_aware_optimizer": True,
                   "exp_avg_dtype": "bfloat16", "exp_avg_sq_dtype": "bfloat16"}),
    "adam-on-host": Setting(
        "qwen3-0.6b", 64, 896, 128,
        _EAGER | _PAIR | {"optimizer_cpu_offload": True, "use_precision_aware_optimizer": True}),
    "selective": Setting(
        "qwen3-4b", 32, 3968, 128,
        _ASLEEP | {"max_tokens_per_micro_batch": 8192, "recompute_granularity": "selective"}, frozen=True),
    "long": Setting(
        "qwen3-1.7b", 16, 8064, 128, _EAGER | {"max_tokens_per_micro_batch": 8192}, frozen=True),
    "lora-full": Setting(
        "qwen3-4b", 32, 3968, 128,
        _ASLEEP | {"max_tokens_per_micro_batch": 16384, "recompute_granularity": "full", "tuner_type": "lora",
                   "lora_rank": 16, "lora_alpha": 32}, frozen=True),
    "dense-4b": Setting(
        "qwen3-4b", 64, 896, 128, _ASLEEP | {"max_tokens_per_micro_batch": 8192}, frozen=True),
    "planned": Setting(
        "qwen3-4b", 64, 896, 128, _EAGER | {"max_tokens_per_micro_batch": 8192}, frozen=True, memory_share=None),
    "dp2": Setting(
        "qwen3-1.7b", 64, 1920, 128, _EAGER | _PAIR | {"overlap_grad_reduce": True, "overlap_param_gather": True},
        gpus=2),
    "tp2": Setting(
        "qwen3-1.7b", 64, 1920, 128,
        _EAGER | _PAIR | {"tensor_model_parallel_size": 2, "sequence_parallel": True}, gpus=2),
    "cp2": Setting("qwen3-1.7b", 64, 1920, 128, _EAGER | _PAIR | {"context_parallel_size": 2}, gpus=2),
    "pp2": Setting("qwen3-1.7b", 64, 1920, 128, _EAGER | _PAIR | {"pipeline_model_parallel_size": 2}, gpus=2),
    "lora-tp2": Setting(
        "qwen3-4b", 32, 3968, 128,
        _ASLEEP | {"max_tokens_per_micro_batch": 16384, "tensor_model_parallel_size": 2, "sequence_parallel": True,
                   "recompute_granularity": "full", "tuner_type": "lora", "lora_rank": 16, "lora_alpha": 32},
        gpus=2, frozen=True),
    "selective-tp2": Setting(
        "qwen3-4b", 32, 3968, 128,
        _ASLEEP | {"max_tokens_per_micro_batch": 16384, "tensor_model_parallel_size": 2, "sequence_parallel": True,
                   "recompute_granularity": "selective"}, gpus=2, frozen=True),
    "long-cp2": Setting(
        "qwen3-1.7b", 16, 8064, 128,
        _EAGER | {"max_tokens_per_micro_batch": 16384, "context_parallel_size": 2}, gpus=2, frozen=True),
    "ep2": Setting("moe-3b", 64, 896, 128, _EAGER | _PAIR | {"expert_model_parallel_size": 2}, gpus=2, frozen=True),
}  # fmt: skip


def overrides(setting: Setting) -> list[str]:
    """The setting's ``keys`` as a command line has them."""
    return [f"{key}={json.dumps(value) if isinstance(value, bool) else value}" for key, value in setting.keys.items()]


def run_file(name: str, setting: Setting, folder: Path, device: str = "cuda") -> dict[str, Any]:
    """The run file of a setting, without its ``keys``; ``folder`` has the models and gets the run."""
    precision = "float32" if device == "cpu" else "bfloat16"
    share = device == "cuda" and setting.memory_share is not None
    return {
        "name": name,
        "output_dir": str(folder / "runs"),
        "model": {"path": str(folder / "models" / setting.shape), "dtype": precision},
        "data": {"train": str(folder / f"{name}.jsonl")},
        "resources": {
            "device": device,
            "nproc_per_node": setting.gpus,
            **({"gpu": "h200"} if device == "cuda" else {}),
        },
        "batch": {"global_batch_size": setting.completions, "num_generations": 8, "train_iters": setting.steps},
        "rollout": {
            **({"vllm_gpu_memory_utilization": setting.memory_share} if share else {}),
            "vllm_dtype": precision,
            "vllm_max_model_len": setting.prompt + setting.completion,
            "max_completion_length": setting.completion,
        },
        "rewards": {"reward_funcs": [f"{HERE / 'reward.py'}:parity"]},
        "optimizer": {"lr": 1e-6},
        "checkpoint": {"save_last": False, "export": False},
    }


def vocabulary(setting: Setting) -> int:
    return int(SHAPES[setting.shape]["vocab_size"])
