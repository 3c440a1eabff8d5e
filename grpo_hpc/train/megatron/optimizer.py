"""Megatron's Adam and its learning-rate schedule, and how gradients and parameters travel between replicas."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from megatron.core.optimizer import OptimizerConfig
from megatron.core.optimizer.clip_grads import clip_grad_by_total_norm_fp32
from megatron.core.optimizer.cpu_offloading import HybridDeviceOptimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

from grpo_hpc.config import RunConfig
from grpo_hpc.models.policy_model import PolicyModel

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def data_parallel(cfg: RunConfig, chunks: list[PolicyModel]) -> list[DistributedDataParallel]:
    """Megatron's DDP around each model chunk of this rank, and what its schedules must know of it."""
    parallel = cfg.parallel
    ddp_config = DistributedDataParallelConfig(
        grad_reduce_in_fp32=True,
        use_distributed_optimizer=parallel.use_distributed_optimizer,
        overlap_grad_reduce=parallel.overlap_grad_reduce,
        overlap_param_gather=parallel.overlap_param_gather,
        bucket_size=parallel.ddp_bucket_size,
    )
    config = chunks[0].config
    # later chunks of an interleaved pipeline communicate while others compute: one bucket is best there
    wrapped = [
        DistributedDataParallel(config, ddp_config, chunk, disable_bucketing=number > 0)
        for number, chunk in enumerate(chunks)
    ]
    if parallel.overlap_grad_reduce:
        waits = [chunk.no_sync for chunk in wrapped]
        config.no_sync_func = waits[0] if len(waits) == 1 else waits
    return wrapped


def optimizer_config(cfg: RunConfig) -> OptimizerConfig:
    o, dtype = cfg.optimizer, DTYPES[cfg.model.dtype]
    return OptimizerConfig(
        optimizer="adam",
        lr=o.lr,
        min_lr=o.min_lr,
        weight_decay=o.weight_decay,
        adam_beta1=o.adam_beta1,
        adam_beta2=o.adam_beta2,
        adam_eps=o.adam_eps,
        clip_grad=o.clip_grad,
        bf16=dtype == torch.bfloat16,
        params_dtype=dtype,
        use_distributed_optimizer=cfg.parallel.use_distributed_optimizer,
        overlap_param_gather=cfg.parallel.overlap_param_gather,
        use_precision_aware_optimizer=o.use_precision_aware_optimizer,
        exp_avg_dtype=DTYPES[o.exp_avg_dtype],
        exp_avg_sq_dtype=DTYPES[o.exp_avg_sq_dtype],
        optimizer_cpu_offload=o.optimizer_cpu_offload,
        optimizer_offload_fraction=o.optimizer_offload_fraction if o.optimizer_cpu_offload else 0.0,
    )


def gradient_norm(optimizer: Any) -> float:
    """The global norm of all gradients, which are now where :func:`clip_and_step` expects them; not finite if one is
    not, or if their squares are too large to be added in fp32. Collective.

    Megatron makes one step of this and the next function. It looks at the gradients between them when it trains in
    fp16 and scales the loss, and never else.
    """
    optimizer.prepare_grads()
    return float(optimizer.get_grad_norm())


def clip_and_step(optimizer: Any, norm: float) -> None:
    """Scale the gradients down to ``clip_grad`` if ``norm`` is larger, and update parameters and moments."""
    for part in getattr(optimizer, "chained_optimizers", [optimizer]):
        if getattr(part, "is_stub_optimizer", False) or not part.get_parameters():
            continue
        decoupled = part.config.use_precision_aware_optimizer_no_fp8_or_ds_fp8
        clip_grad_by_total_norm_fp32(part.get_parameters(), part.config.clip_grad, norm, decoupled)
    optimizer.step_with_ready_grads()


def allocate_state(optimizer: Any) -> None:
    """Give Adam its moments before the first step.

    Megatron saves and loads the state of torch's Adam (its choice where neither TransformerEngine nor Apex is) only
    when it is there, step counters included. TransformerEngine's would allocate them after the first backward pass:
    in the holes that activations left, for good, and after the engine has looked how much memory is free.
    """
    for adam in torch_adams(optimizer):
        for parameter in (p for group in adam.param_groups for p in group["params"]):
            adam.state[parameter] = {
                "step": torch.tensor(0.0),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }
    for part in getattr(optimizer, "chained_optimizers", [optimizer]):
        ours = isinstance(part.optimizer, torch.optim.Adam) or part.config.use_precision_aware_optimizer
        if not ours and part.init_state_fn is not None:
            part.init_state_fn(part.optimizer, part.config)


def torch_adams(optimizer: Any) -> list[torch.optim.Adam]:
    """The torch optimizers inside Megatron's; none where TransformerEngine's is used."""
    parts = [part.optimizer for part in getattr(optimizer, "chained_optimizers", [optimizer])]
    return [part for part in parts if isinstance(part, torch.optim.Adam)]  # AdamW is one


def follow_loaded_state(optimizer: Any, step: int) -> None:
    """Let Adam go on after ``step`` optimizer steps from what was just loaded.

    Megatron's distributed optimizer loses the step counters of torch's Adam, and lets parameters share one. Its Adam on
    the host would, without a word, carry on with the copies of the weights that it made before and with a counter of 1,
    and set the counter of the part that stays on the GPU back to ``step`` at every step.
    """
    for hybrid in _hybrids(optimizer):
        hybrid._sync_hdo_state_to_sub_optimizers()
        for group in hybrid.param_groups:
            group.pop("step", None)
    set_step_counter(optimizer, step)


def set_step_counter(optimizer: Any, step: int) -> None:
    """Let Adam have made ``step`` steps, wherever it would be told so by :func:`follow_loaded_state`.

    Its counter counts the steps of the run, those without an update among them: a restored run knows no other number.
    """
    adams = torch_adams(optimizer)
    for hybrid in _hybrids(optimizer):
        adams += hybrid.cpu_optimizers
        for group in hybrid.gpu_optimizer.param_groups if hybrid.gpu_optimizer else ():
            group["step"] = step
    for adam in adams:
        for state in adam.state.values():
            state["step"] = torch.tensor(float(step))


def _hybrids(optimizer: Any) -> list[HybridDeviceOptimizer]:
    parts = [part.optimizer for part in getattr(optimizer, "chained_optimizers", [optimizer])]
    return [part for part in parts if isinstance(part, HybridDeviceOptimizer)]


def set_learning_rate(optimizer: Any, cfg: RunConfig) -> None:
    """Let the schedule run between the rates of the run file: a checkpoint brings back those that it was saved with."""
    for group in optimizer.param_groups:
        group["max_lr"], group["min_lr"] = cfg.optimizer.lr, cfg.optimizer.min_lr


def lr_schedule(cfg: RunConfig, optimizer: Any) -> OptimizerParamScheduler:
    o = cfg.optimizer
    return OptimizerParamScheduler(
        optimizer,
        init_lr=0.0,
        max_lr=o.lr,
        min_lr=o.min_lr,
        lr_warmup_steps=o.lr_warmup_iters,
        lr_decay_steps=max(cfg.batch.steps, o.lr_warmup_iters + 1),
        lr_decay_style=o.lr_decay_style,
        start_wd=o.weight_decay,
        end_wd=o.weight_decay,
        wd_incr_steps=cfg.batch.steps,
        wd_incr_style="constant",
    )
