"""The trained model on these ranks: Megatron's DDP, optimizer and pipeline schedule around the policy model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state as mpu
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor

from grpo_hpc.algo.measure import MAXIMA, SUMS, measure, step_values
from grpo_hpc.algo.objective import TokenData
from grpo_hpc.config import RunConfig
from grpo_hpc.models.hf_folder import HfFolder
from grpo_hpc.models.movers import HfExporter, load_hf
from grpo_hpc.models.policy import PolicyModel, layer_spec, transformer_config
from grpo_hpc.models.shape import read_shape
from grpo_hpc.train.microbatch import PackedBatch
from grpo_hpc.train.objective import objective_of
from grpo_hpc.train.parallel import over_context, packed_sequences
from grpo_hpc.train.platform import Platform

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

LossFunction = Callable[[PackedBatch, Tensor], tuple[Tensor, Tensor, Any]]
Progress = Callable[[int, int], None]


def build_model(cfg: RunConfig, platform: Platform) -> PolicyModel:
    """This rank's part of the model in ``cfg.model.path``, with its weights."""
    shape = read_shape(cfg.model.path)
    with platform.megatron():
        config = transformer_config(shape, DTYPES[cfg.model.dtype], platform.transformer_options())
        spec = layer_spec(config, platform.layer_spec, shape)
        model = PolicyModel(shape, config, spec, cfg.rollout.temperature).to(platform.device)
    load_hf(model, HfFolder(cfg.model.path), platform.layer_spec)
    return model


class TrainedPolicy:
    """The policy with its gradients and optimizer state. Every method is collective over all ranks.

    Args:
        progress: called with the micro-batches done and their number while a step is made.
    """

    def __init__(self, cfg: RunConfig, platform: Platform, progress: Progress | None = None) -> None:
        self._cfg, self._platform, self._progress = cfg, platform, progress
        self.model = build_model(cfg, platform)
        self.model.entropy_gradient = cfg.algorithm.entropy_coef != 0.0
        self._objective = objective_of(cfg)
        distributed = cfg.parallel.use_distributed_optimizer
        with platform.megatron():
            ddp_config = DistributedDataParallelConfig(
                grad_reduce_in_fp32=True, use_distributed_optimizer=distributed, overlap_grad_reduce=False
            )
            self.ddp = DistributedDataParallel(self.model.config, ddp_config, self.model)
            self.optimizer = get_megatron_optimizer(_optimizer_config(cfg), [self.ddp])
        _allocate_state(self.optimizer)
        self.model.config.grad_scale_func = self.optimizer.scale_loss
        self.model.config.finalize_model_grads_func = _sum_gradients
        self._schedule = _lr_schedule(cfg, self.optimizer)
        self.exporter = HfExporter(self.model, platform.layer_spec)

    def load(self, model: dict[str, Any], optimizer: dict[str, Any], step: int) -> None:
        """Restore weights, optimizer state and learning-rate schedule as ``step`` optimizer steps left them."""
        self.model.load_state_dict(model)
        self.optimizer.load_state_dict(optimizer)
        # Megatron's distributed optimizer loses the step counters of torch's Adam, and lets parameters share one
        for adam in _torch_adams(self.optimizer):
            for state in adam.state.values():
                state["step"] = torch.tensor(float(step))
        self._schedule.step(increment=step)

    def scores(self, batches: Sequence[PackedBatch]) -> list[Tensor]:
        """Log-probabilities and entropies [2, N] of each micro-batch under the weights of now, without gradient.

        Empty but on the last stage.
        """
        return forward_scores(self.model, batches, self._platform)

    def accumulate(self, batches: Sequence[PackedBatch], threshold: float = -torch.inf) -> list[tuple[Tensor, Tensor]]:
        """Forward and backward of one optimizer step: afterwards every gradient is complete and reduced.

        Args:
            threshold: tokens with less entropy have no policy loss.

        Returns:
            what :func:`grpo_hpc.algo.measure.measure` says of each micro-batch; empty but on the last stage.
        """
        loss = partial(self._loss, threshold)
        with self._platform.megatron():
            self.ddp.zero_grad_buffer()
            self.optimizer.zero_grad()
            return _run_schedule(self.ddp, batches, loss, forward_only=False, progress=self._progress)

    def update(self, batches: Sequence[PackedBatch], threshold: float = -torch.inf) -> dict[str, float]:
        """One optimizer step; returns its metrics, over all tokens of all ranks."""
        parts = self.accumulate(batches, threshold)
        self._schedule.step(increment=1)  # before the update: the first one has a learning rate above zero
        with self._platform.megatron():
            _, grad_norm, _ = self.optimizer.step()
        values = step_values(*_totals(parts, self._platform.device))
        return values | {"grad_norm": float(grad_norm), "learning_rate": self.optimizer.param_groups[0]["lr"]}

    def _loss(
        self, threshold: float, batch: PackedBatch, output: Tensor
    ) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
        logprobs, entropy = output[0], output[1]
        data = TokenData(
            batch.advantages, batch.rollout_logprobs, batch.old_logprobs, batch.ref_logprobs, batch.sequences
        )
        result = self._objective(data, logprobs, entropy, threshold)
        loss = (result.total * batch.weights).sum()
        return loss, _unused_token_count(), measure(result, data, batch.weights, logprobs, entropy)


def forward_scores(model: PolicyModel, batches: Sequence[PackedBatch], platform: Platform) -> list[Tensor]:
    """Log-probabilities and entropies [2, N] of each micro-batch; empty but on the last pipeline stage."""

    def keep(_batch: PackedBatch, output: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return output.sum(), _unused_token_count(), output.detach().float().cpu()

    with platform.megatron(), torch.no_grad():
        return _run_schedule(model, batches, keep, forward_only=True)


def _run_schedule(
    model: Any,
    batches: Sequence[PackedBatch],
    loss: LossFunction,
    forward_only: bool,
    progress: Progress | None = None,
) -> list[Any]:
    """Megatron's schedule for this pipeline depth over ``batches``."""

    def forward_step(iterator: Any, chunk: Any) -> tuple[Tensor, Callable[[Tensor], Any]]:
        batch: PackedBatch = next(iterator)
        output = chunk(
            batch.input_ids,
            batch.position_ids,
            None,
            labels=batch.labels,
            loss_mask=batch.loss_mask,
            packed_seq_params=packed_sequences(batch),
        )
        if mpu.is_pipeline_last_stage():
            output = over_context(output, batch)
        return output, partial(loss, batch)

    return get_forward_backward_func()(
        forward_step_func=forward_step,
        data_iterator=_announced(batches, progress),
        model=[model],
        num_microbatches=len(batches),
        seq_length=max(batch.tokens for batch in batches),
        micro_batch_size=1,
        forward_only=forward_only,
    )


def _announced(batches: Sequence[PackedBatch], progress: Progress | None) -> Iterator[PackedBatch]:
    for done, batch in enumerate(batches):
        if progress is not None:
            progress(done, len(batches))
        yield batch


def _sum_gradients(models: list[Any], _num_tokens: Tensor | None, *args: Any, **kwargs: Any) -> None:
    """Complete the gradients without Megatron's division by token counts: our weights are the denominator already."""
    finalize_model_grads(models, None, *args, **kwargs)


def _unused_token_count() -> Tensor:
    """Megatron adds this up over micro-batches; :func:`_sum_gradients` does not use it."""
    return torch.tensor(1, dtype=torch.int)


def _totals(parts: Sequence[tuple[Tensor, Tensor]], device: torch.device) -> tuple[dict[str, float], dict[str, float]]:
    """Sums and maxima over micro-batches and ranks; copies on other ranks and other stages add nothing."""
    sums = torch.zeros(len(SUMS), dtype=torch.float64, device=device)
    maxima = torch.full((len(MAXIMA),), -torch.inf, dtype=torch.float64, device=device)
    if parts and mpu.get_tensor_model_parallel_rank() == 0 and mpu.get_context_parallel_rank() == 0:
        sums += torch.stack([part for part, _ in parts]).sum(0)
        maxima = torch.stack([part for _, part in parts]).amax(0)
    dist.all_reduce(sums)
    dist.all_reduce(maxima, op=dist.ReduceOp.MAX)
    return dict(zip(SUMS, sums.tolist(), strict=True)), dict(zip(MAXIMA, maxima.tolist(), strict=True))


def _optimizer_config(cfg: RunConfig) -> OptimizerConfig:
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
    )


def _allocate_state(optimizer: Any) -> None:
    """Give torch's Adam its state before the first step.

    Megatron saves and loads the state of torch's Adam (its choice where neither TransformerEngine nor Apex is) only
    when it is there, step counters included.
    """
    for adam in _torch_adams(optimizer):
        for parameter in (p for group in adam.param_groups for p in group["params"]):
            adam.state[parameter] = {
                "step": torch.tensor(0.0),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }


def _torch_adams(optimizer: Any) -> list[torch.optim.Adam]:
    """The torch optimizers inside Megatron's; none where TransformerEngine's is used."""
    parts = [part.optimizer for part in getattr(optimizer, "chained_optimizers", [optimizer])]
    return [part for part in parts if isinstance(part, torch.optim.Adam)]  # AdamW is one


def _lr_schedule(cfg: RunConfig, optimizer: Any) -> OptimizerParamScheduler:
    o = cfg.optimizer
    return OptimizerParamScheduler(
        optimizer,
        init_lr=0.0,
        max_lr=o.lr,
        min_lr=o.min_lr,
        lr_warmup_steps=o.lr_warmup_iters,
        lr_decay_steps=max(cfg.batch.train_iters, o.lr_warmup_iters + 1),
        lr_decay_style=o.lr_decay_style,
        start_wd=o.weight_decay,
        end_wd=o.weight_decay,
        wd_incr_steps=cfg.batch.train_iters,
        wd_incr_style="constant",
    )
