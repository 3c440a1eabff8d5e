"""Keys that other trainers know and this one refuses, each with the reason."""

from __future__ import annotations

_RENAMED = {
    "model_path": "model.path",
    "load": "model.path",
    "mcore_model": "model.path",
    "torch_dtype": "model.dtype",
    "dataset": "data.train",
    "val_dataset": "data.eval",
    "dataset_shuffle": "data.shuffle",
    "save": "output_dir",
    "save_interval": "checkpoint.save_steps",
    "save_retain_interval": "checkpoint.save_total_limit",
    "eval_interval": "evaluation.eval_steps",
    "learning_rate": "optimizer.lr",
    "per_device_train_batch_size": "batch.micro_batch_size",
    "max_steps": "batch.train_iters",
    "max_epochs": "batch.num_train_epochs",
    "train_type": "tuner.tuner_type",
    "NPROC_PER_NODE": "resources.nproc_per_node",
    "NNODES": "resources.nodes",
}

_PRECISION = "training precision is set by model.dtype: float32 or bfloat16"

REFUSED: dict[str, str] = {
    **{old: f"is called {new} here" for old, new in _RENAMED.items()},
    "use_vllm": "rollouts always come from vLLM; leave this key out",
    "move_model_batches": "weights are streamed to vLLM one tensor at a time; leave this key out",
    "log_entropy": "entropy is always logged; leave this key out",
    "log_rollout_offpolicy_metrics": "these metrics are always logged; leave this key out",
    "bf16": _PRECISION,
    "fp16": _PRECISION,
}

ACCEPTED_AND_DROPPED: dict[str, object] = {
    "use_vllm": True,
    "log_entropy": True,
    "log_rollout_offpolicy_metrics": True,
}
"""Keys that may be given with this one value, which is what happens anyway."""
