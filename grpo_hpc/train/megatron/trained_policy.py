"""The trained model on these ranks: Megatron's DDP, optimizer and pipeline schedule around the policy model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any
from zlib import crc32

import torch
import torch.distributed as dist
from megatron.core import parallel_state as mpu
from megatron.core.optimizer import get_megatron_optimizer
from torch import Tensor

from grpo_hpc.algo.measure import MAXIMA, SUMS, measure, step_values
from grpo_hpc.algo.objective import TokenData
from grpo_hpc.config import RunConfig
from grpo_hpc.control import Control
from grpo_hpc.errors import TrainingDiverged
from grpo_hpc.models.families.read_shape import read_shape
from grpo_hpc.models.hf_folder import HfFolder
from grpo_hpc.models.lora import adapters_off, merged_values
from grpo_hpc.models.movers import HfExporter, load_hf, local_parameters
from grpo_hpc.models.patches import add_weight_gradients_in_place, load_what_belongs
from grpo_hpc.models.policy_model import PolicyModel, layer_spec, transformer_config
from grpo_hpc.models.routing import move_biases, policy_routers, routing_load, routing_metrics
from grpo_hpc.models.shape import require_experts
from grpo_hpc.train.megatron.chosen_objective import objective_of
from grpo_hpc.train.megatron.expert_options import balance_of
from grpo_hpc.train.megatron.optimizer import (
    DTYPES,
    allocate_state,
    clip_and_step,
    data_parallel,
    follow_loaded_state,
    gradient_norm,
    lr_schedule,
    optimizer_config,
    set_learning_rate,
    set_step_counter,
)
from grpo_hpc.train.megatron.parallel import model_options
from grpo_hpc.train.megatron.pipeline import Progress, forward_scores, run_schedule, sum_gradients, unused_token_count
from grpo_hpc.train.megatron.platform import Platform
from grpo_hpc.train.megatron.tuner import adapters_of, choose_trained
from grpo_hpc.train.micro_batches import PackedBatch
from grpo_hpc.train.replay import RoutingRecorder, freely_routed


def build_model(cfg: RunConfig, platform: Platform) -> list[PolicyModel]:
    """This rank's parts of the model in ``cfg.model.path``, with their weights; collective.

    It is one part, or several chunks of layers when pipeline stages interleave.
    """
    chunks = _bare_model(cfg, platform)
    load_hf(chunks, HfFolder(cfg.model.path), platform.layer_spec)
    return chunks


def copy_of(chunks: Sequence[PolicyModel], cfg: RunConfig, platform: Platform) -> list[PolicyModel]:
    """A second model with the weights of ``chunks``, for evaluation: nothing is read or sent."""
    ours, copied = local_parameters(chunks), _bare_model(cfg, platform)
    with torch.no_grad():
        for name, parameter in local_parameters(copied).items():
            parameter.copy_(ours[name])
    return [chunk.eval() for chunk in copied]


def _bare_model(cfg: RunConfig, platform: Platform) -> list[PolicyModel]:
    shape = read_shape(cfg.model.path)
    require_experts(shape, cfg.moe.chosen())
    stages = mpu.get_virtual_pipeline_model_parallel_world_size()
    with platform.megatron():
        config = transformer_config(shape, DTYPES[cfg.model.dtype], model_options(cfg, platform))
        chunks = []
        for stage in [None] if stages is None else range(stages):
            spec = layer_spec(config, platform.layer_spec, shape, stage)
            bonus = cfg.algorithm.entropy_coef != 0.0
            longest = cfg.rollout.vllm_max_model_len
            model = PolicyModel(shape, config, spec, cfg.rollout.temperature, stage, balance_of(cfg), bonus, longest)
            if model.routing is not None:
                model.routing.on(platform.device)
            chunks.append(model.to(platform.device))
    return chunks


class TrainedPolicy:
    """The policy with its gradients and optimizer state. Every method is collective over all ranks.

    Args:
        control: of all ranks.
        progress: called with the micro-batches done and their number while a step is made.

    Attributes:
        skipped: optimizer steps in a row, up to now, that made no update. A checkpoint waits until it is 0.
    """

    def __init__(self, cfg: RunConfig, platform: Platform, control: Control, progress: Progress | None = None) -> None:
        self._cfg, self._platform, self._progress = cfg, platform, progress
        self.skipped = 0
        self.chunks = build_model(cfg, platform)
        self.adapters = adapters_of(cfg)
        choose_trained(cfg, self.chunks, platform.layer_spec)
        self._routing = [chunk.routing for chunk in self.chunks if chunk.routing is not None]
        self._objective = objective_of(cfg)
        with platform.megatron():
            self.ddp = data_parallel(cfg, self.chunks)
            platform.empty_cache()  # Megatron has moved the parameters into one buffer: what they lay in is free
            self.optimizer = get_megatron_optimizer(optimizer_config(cfg), self.ddp)
        allocate_state(self.optimizer)
        add_weight_gradients_in_place(self.chunks, cfg.parallel.overlap_grad_reduce)
        config = self.chunks[0].config
        config.grad_scale_func = self.optimizer.scale_loss
        config.finalize_model_grads_func = sum_gradients
        self._schedule = lr_schedule(cfg, self.optimizer)
        bucket = int(cfg.rollout.sync_bucket_mib * 2**20)
        self._exporter = HfExporter(self.chunks, platform.layer_spec, control, merged_values(self.chunks), bucket)
        self._parameters_travel = False  # whether some may still be on their way from the ranks that updated them

    @property
    def exporter(self) -> HfExporter:
        """The weights of now as Hugging Face tensors."""
        self.settle()
        return self._exporter

    def settle(self) -> None:
        """Wait until every rank has all parameters of the last update: needed before they are read but by a step."""
        if self._parameters_travel:
            with self._platform.megatron():
                for chunk in self.ddp:
                    chunk.start_param_sync(force_sync=True)
        self._parameters_travel = False

    def load(self, models: list[dict[str, Any]], optimizer: dict[str, Any], step: int) -> None:
        """Restore weights, optimizer state and learning-rate schedule as ``step`` optimizer steps left them."""
        self.settle()
        for chunk, state in zip(self.chunks, models, strict=True):
            chunk.load_state_dict(state, strict=self.adapters is None)  # the base is not in a checkpoint of adapters
        load_what_belongs(self.optimizer)
        self.optimizer.load_state_dict(optimizer)
        follow_loaded_state(self.optimizer, step)
        set_learning_rate(self.optimizer, self._cfg)
        self._schedule.step(increment=step)

    def scores(self, batches: Sequence[PackedBatch], recorder: RoutingRecorder | None = None) -> list[Tensor]:
        """Log-probabilities and entropies [2, N] of each micro-batch under the weights of now, without gradient.

        Empty but on the last stage.
        """
        self.settle()
        return forward_scores(self.chunks, batches, self._platform, recorder)

    def recorder(self, batches: Sequence[PackedBatch]) -> RoutingRecorder:
        """Writes down which experts tokens go to in :meth:`scores`."""
        layers = [router.place for chunk in self.chunks for router in policy_routers(chunk)]
        return RoutingRecorder(self.chunks[0].shape, batches, layers)

    def base_scores(self, batches: Sequence[PackedBatch]) -> list[Tensor]:
        """:meth:`scores` without adapters: those of the model that the run started from."""
        with adapters_off(self.chunks):
            return self.scores(freely_routed(batches))

    def accumulate(self, batches: Sequence[PackedBatch], threshold: float = -torch.inf) -> list[tuple[Tensor, Tensor]]:
        """Forward and backward of one optimizer step: afterwards every gradient is complete and reduced.

        Args:
            threshold: tokens with less entropy have no policy loss.

        Returns:
            what :func:`grpo_hpc.algo.measure.measure` says of each micro-batch; empty but on the last stage.
        """
        loss = partial(self._loss, threshold)
        step = crc32(f"{self._cfg.seed}/{self._schedule.num_steps}".encode())
        with self._platform.megatron():
            for chunk in self.ddp:
                chunk.zero_grad_buffer()
            self.optimizer.zero_grad()
            for state in self._routing:
                state.take()  # what a pass that was no step left there
            return run_schedule(self.ddp, batches, loss, forward_only=False, progress=self._progress, step=step)

    def update(self, batches: Sequence[PackedBatch], threshold: float = -torch.inf) -> dict[str, float]:
        """One optimizer step; returns its metrics, over all tokens of all ranks.

        Where the loss or the gradient is not finite on some rank, no rank makes the update: weights, Adam's moments and
        biases of routers stay as they are. The learning-rate schedule and Adam's counter go on, as they count steps.

        Raises:
            TrainingDiverged: it was the last of ``optimizer.max_skipped_updates`` such steps in a row.
        """
        parts = self.accumulate(batches, threshold)
        self._schedule.step(increment=1)  # before the update: the first one has a learning rate above zero
        with self._platform.megatron():
            norm = gradient_norm(self.optimizer)
        sums, maxima, finite = _totals(parts, norm, self._platform.device)
        if finite:
            self._make_update(norm)
        else:
            self._skip_update()
        values = step_values(sums, maxima) | {"grad_norm": norm, "skipped_updates": float(self.skipped)}
        if self._routing:
            values |= self._balance(move=finite)
        return values | {"learning_rate": self.optimizer.param_groups[0]["lr"]}

    def _make_update(self, norm: float) -> None:
        with self._platform.megatron():
            clip_and_step(self.optimizer, norm)
        self._parameters_travel = self._cfg.parallel.overlap_param_gather
        self.skipped = 0

    def _skip_update(self) -> None:
        self.skipped += 1
        step, limit = self._schedule.num_steps, self._cfg.optimizer.max_skipped_updates
        if self.skipped >= limit:
            raise TrainingDiverged(
                f"loss or gradient were not finite in {self.skipped} optimizer steps in a row, the last of them step "
                f"{step}: none of them changed the weights",
                "The newest checkpoint is from before them. Resume with a lower optimizer.lr, look at the completions "
                f"that events.jsonl names, or let more than {limit} steps pass: optimizer.max_skipped_updates.",
            )
        set_step_counter(self.optimizer, step)

    def _balance(self, *, move: bool) -> dict[str, float]:
        """Move the routers' biases by the load of the step that was made; returns its metrics."""
        counts, sums = routing_load(self._routing)
        if move and self._cfg.moe.moe_router_bias_update_rate:
            move_biases(self.chunks, counts, self._cfg.moe.moe_router_bias_update_rate)
        return routing_metrics(counts, sums)

    def _loss(
        self, threshold: float, batch: PackedBatch, output: Tensor
    ) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
        logprobs, entropy = output[0], output[1]
        data = TokenData(
            batch.advantages, batch.rollout_logprobs, batch.old_logprobs, batch.ref_logprobs, batch.sequences
        )
        result = self._objective(data, logprobs, entropy, threshold)
        loss = (result.total * batch.token_weights).sum()
        return loss, unused_token_count(), measure(result, data, batch.token_weights, logprobs, entropy)


def _totals(
    parts: Sequence[tuple[Tensor, Tensor]], norm: float, device: torch.device
) -> tuple[dict[str, float], dict[str, float], bool]:
    """Sums and maxima over micro-batches and ranks; copies on other ranks and other stages add nothing.

    Args:
        norm: of this rank's gradients.

    Returns:
        sums, maxima, and whether every loss and the gradients are finite on all ranks.
    """
    sums = torch.zeros(len(SUMS), dtype=torch.float64, device=device)
    broken = torch.full((1,), float(not math.isfinite(norm)), dtype=torch.float64, device=device)
    maxima = torch.full((len(MAXIMA),), -torch.inf, dtype=torch.float64, device=device)
    if parts and mpu.get_tensor_model_parallel_rank() == 0 and mpu.get_context_parallel_rank() == 0:
        sums += torch.stack([part for part, _ in parts]).sum(0)
        maxima = torch.stack([part for _, part in parts]).amax(0)
    if parts:
        broken += ~torch.stack([part[SUMS.index("loss")] for part, _ in parts]).isfinite().all()
    total = torch.cat((sums, broken))
    dist.all_reduce(total)
    dist.all_reduce(maxima, op=dist.ReduceOp.MAX)
    *summed, found = total.tolist()
    return dict(zip(SUMS, summed, strict=True)), dict(zip(MAXIMA, maxima.tolist(), strict=True)), not found
