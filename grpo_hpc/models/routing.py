"""Where tokens go in a model with experts: a router that balances per sequence, records its choices and replays others.

Megatron's balance loss is one of micro-batches, so it depends on how a step is cut. Here each sequence has its own
(DeepSeek-V3, arXiv 2412.19437, eq. 17-20), and the loss is their mean over the optimizer step:

    L = coef / B * sum_s sum_i f_si P_si,    f_si = E / (k T_s) * #{t in s: token t goes to expert i},
    P_si = 1 / T_s * sum_{t in s} p_ti

with B sequences in the step, T_s tokens in sequence s, and p the router's scores, made to sum to 1. It adds up over
micro-batches and ranks; only the counts in f must be known of the whole sequence, so ranks that share one sum them.

Shapes: t tokens that this rank has between layers, S sequences, L layers with experts (of the whole model), E experts,
k of them per token.

A router with a correction bias can be balanced without a loss: see :func:`move_biases`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from megatron.core.transformer.moe.moe_utils import MoEAuxLossAutoScaler
from megatron.core.transformer.moe.router import TopKRouter
from torch import Tensor, nn

from grpo_hpc.models.micro_batch_context import MicroBatchContext, RoutedTokens, current_context
from grpo_hpc.models.shape import Experts, ModelShape


@dataclass(frozen=True)
class Balance:
    """Weights of the losses that keep experts evenly used.

    Attributes:
        aux: of the balance loss.
        z: of the mean squared log-sum-exp of the router's logits (ST-MoE, arXiv 2202.08906, eq. 5).
        sequences: in an optimizer step, over all ranks.
    """

    aux: float = 0.0
    z: float = 0.0
    sequences: int = 1


NO_BALANCE = Balance()


@dataclass
class RoutingState:
    """What the routers of one model chunk share.

    Attributes:
        counts: [L, E] tokens that went to each expert in training since the last :meth:`take`.
        sums: balance loss and z-loss without their weights, choices, choices that replay changed: [4].
    """

    experts: Experts
    layers: int
    balance: Balance

    def __post_init__(self) -> None:
        self.counts = torch.zeros(self.layers, self.experts.count, dtype=torch.float64)
        self.sums = torch.zeros(4, dtype=torch.float64)

    def on(self, device: torch.device) -> None:
        """Keep the statistics where the model is, so that adding to them waits for nothing."""
        self.counts, self.sums = self.counts.to(device), self.sums.to(device)

    def take(self) -> tuple[Tensor, Tensor]:
        """``counts`` and ``sums`` of this rank, which start again."""
        taken = self.counts.clone(), self.sums.clone()
        self.counts.zero_()
        self.sums.zero_()
        return taken


def share_routing_state(model: nn.Module, shape: ModelShape, balance: Balance) -> RoutingState | None:
    """Give the routers of one model chunk their places and the state that they share; None without experts."""
    if shape.experts is None:
        return None
    state = RoutingState(shape.experts, len(shape.moe_layers), balance)
    for router in policy_routers(model):
        router.state = state
        router.place = shape.moe_layers.index(router.layer_number - 1)
    return state


class PolicyRouter(TopKRouter):
    """Megatron's router with this package's balance, record and replay; a layer's specification names it.

    Attributes:
        place: number of its layer among those with experts.
    """

    state: RoutingState
    place: int

    def routing(self, logits: Tensor, padding_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Probabilities and choice [t, E] for router ``logits`` [t, 1, E]."""
        context = current_context()
        tokens = None if context is None else context.routed
        logits = logits.view(-1, self.state.experts.count)
        experts = self.state.experts
        scores = expert_scores(logits, experts)
        told = self._recorded(choose(scores, self.expert_bias, experts), context)
        probs, chosen = spread(chosen_weights(scores, told, experts), told, logits)
        if tokens is not None and self.training and torch.is_grad_enabled():
            probs = self._balanced(probs, logits.float(), chosen, tokens)
        return probs, chosen

    def _recorded(self, own: Tensor, context: MicroBatchContext | None) -> Tensor:
        """The experts [t, k] that each token goes to: those it is told, or its ``own``, which are recorded if asked."""
        if context is None or context.routed is None or context.routed.experts is None:
            if context is not None and context.record is not None:
                context.record(context.number, self.place, own)
            return own
        told = context.routed.experts[:, self.place].to(own)
        if self.training and torch.is_grad_enabled():
            kept = (own[:, :, None] == told[:, None, :]).any(-1)[context.routed.real]
            self.state.sums[2:] += torch.stack([torch.ones_like(kept).sum(), (~kept).sum()])
        return told

    def _balanced(self, probs: Tensor, logits: Tensor, chosen: Tensor, tokens: RoutedTokens) -> Tensor:
        """``probs``, whose backward pass starts the gradients of balance and z-loss as well."""
        self.state.counts[self.place] += (chosen & tokens.real[:, None]).sum(0)
        balance = self.state.balance
        learns = bool(balance.aux or balance.z)
        with torch.set_grad_enabled(learns):
            aux = self._aux_loss(logits, chosen, tokens, tokens.share) / balance.sequences
            z = (logits.logsumexp(-1) ** 2 * tokens.share).sum() / balance.sequences
        self.state.sums[:2] += torch.stack((aux, z)).detach()
        if not learns:
            return probs
        attached: Tensor = MoEAuxLossAutoScaler.apply(probs, balance.aux * aux + balance.z * z)
        return attached

    def _aux_loss(self, logits: Tensor, chosen: Tensor, tokens: RoutedTokens, share: Tensor) -> Tensor:
        """This rank's part of ``sum_s sum_i f_si P_si``."""
        experts = self.state.experts
        scores = expert_scores(logits, experts)
        scores = scores / scores.sum(-1, keepdim=True)
        counts = logits.new_zeros(len(tokens.lengths) + 1, experts.count).index_add_(0, tokens.sequence, chosen.float())
        if self.tp_cp_group.size() > 1:
            dist.all_reduce(counts, group=self.tp_cp_group)
        fractions = counts[tokens.sequence] * (experts.count / experts.topk * share)[:, None]
        return (fractions * scores * share[:, None]).sum()


def expert_scores(logits: Tensor, experts: Experts) -> Tensor:
    """What a router says of each expert, in float32: logits [t, E] -> scores [t, E]."""
    return logits.float().softmax(-1) if experts.score == "softmax" else logits.float().sigmoid()


def choose(scores: Tensor, bias: Tensor | None, experts: Experts) -> Tensor:
    """The experts that each token goes to: scores [t, E] -> numbers [t, k].

    A ``bias`` [E] takes part in the choice only. With groups, those whose ``group_best`` best experts have the largest
    sum are chosen first, and experts within them (arXiv 2412.19437, section 2.1.2; 2405.04434, section 2.2.2).
    """
    ranked = scores if bias is None else scores + bias
    if experts.groups > 1:
        grouped = ranked.unflatten(-1, (experts.groups, -1))
        best = grouped.topk(experts.group_best, -1).values.sum(-1).topk(experts.topk_groups, -1).indices
        within = torch.zeros_like(grouped[..., 0], dtype=torch.bool).scatter(-1, best, True)
        ranked = grouped.masked_fill(~within[..., None], -torch.inf).flatten(-2)
    return ranked.topk(experts.topk, -1).indices


def chosen_weights(scores: Tensor, chosen: Tensor, experts: Experts) -> Tensor:
    """What the chosen experts' outputs are multiplied by: scores [t, E], numbers [t, k] -> [t, k]."""
    weights = scores.gather(-1, chosen)
    if experts.normalise:
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
    return weights * experts.scale


def spread(weights: Tensor, chosen: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
    """Weights and numbers [t, k] over all experts: probabilities like ``logits`` [t, E], and who was chosen [t, E]."""
    probs = torch.zeros_like(logits).scatter(1, chosen, weights.to(logits.dtype))
    return probs, torch.zeros_like(logits, dtype=torch.bool).scatter(1, chosen, True)


def policy_routers(model: nn.Module) -> Iterator[PolicyRouter]:
    """Those of ``model``, layer by layer."""
    return (module for module in model.modules() if isinstance(module, PolicyRouter))


def routing_load(states: Sequence[RoutingState]) -> tuple[Tensor, Tensor]:
    """``counts`` and ``sums`` of the training passes since the last call, over all ranks. Collective."""
    taken = [state.take() for state in states]
    counts, sums = (torch.stack(list(parts)).sum(0) for parts in zip(*taken, strict=True))
    dist.all_reduce(counts)
    dist.all_reduce(sums)
    return counts, sums


def move_biases(models: Sequence[nn.Module], counts: Tensor, rate: float) -> None:
    """Balance without a loss: ``b_i <- b_i + rate * sign(mean of c - c_i)`` (arXiv 2408.15664, algorithm 1).

    Args:
        counts: [L, E], tokens c_i that went to each expert in the optimizer step, over all ranks.
    """
    steps = rate * torch.sign(counts.mean(-1, keepdim=True) - counts)
    for router in (router for model in models for router in policy_routers(model)):
        router.expert_bias.add_(steps[router.place])


def routing_metrics(counts: Tensor, sums: Tensor) -> dict[str, float]:
    """How evenly the experts were used, from what :func:`routing_load` gave."""
    load = counts / counts.mean(-1, keepdim=True)  # [L, E], 1 where experts are used alike
    share = counts / counts.sum(-1, keepdim=True)
    entropy = -torch.xlogy(share, share).sum(-1) / torch.log(torch.tensor(float(counts.shape[1])))
    violation = load.amax(-1) - 1
    layers = len(counts)
    metrics = {
        "moe/load_max_over_mean": float(load.amax(-1).mean()),
        "moe/load_entropy": float(entropy.mean()),
        "moe/max_violation": float(violation.max()),
        "moe/idle_experts": float((counts == 0).sum(-1).max()),
        "moe/aux_loss": float(sums[0]) / layers,
        "moe/z_loss": float(sums[1]) / layers,
    }
    metrics |= {f"moe/layer_{n:02d}/max_violation": float(value) for n, value in enumerate(violation)}
    if sums[2]:
        metrics["moe/replay_changed"] = float(sums[3] / sums[2])
    return metrics
