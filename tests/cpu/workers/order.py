"""Gradients of a step whose backward passes come in the order of the forward passes, and from the last to the first.

Arguments: run files for one rank, with recomputation.
"""

from __future__ import annotations

import random
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from gradients import completions, my_share, packed
from onlayouts import control, each_layout


def main() -> None:
    for cfg, platform in each_layout(sys.argv[1:]):
        compare_orders(cfg, platform)


def compare_orders(cfg, platform):
    from grpo_hpc.config.batch import schedule
    from grpo_hpc.train.credit import set_token_weights
    from grpo_hpc.train.megatron.parallel import packed_sequences
    from grpo_hpc.train.megatron.pipeline import context_of
    from grpo_hpc.train.megatron.trained_policy import TrainedPolicy

    plan, policy = schedule(cfg), TrainedPolicy(cfg, platform, control())
    everything = completions(plan.global_batch_size, plan.num_generations)
    set_token_weights(cfg, plan, everything.table)
    batches = packed(cfg, my_share(cfg, everything), platform, everything)
    if policy.chunks[0].shape.experts is not None:
        check_recorder(policy, batches)
    batches = [routed(batch, policy.chunks[0].shape) for batch in batches]
    assert len(batches) > 2
    (model,) = policy.ddp

    def gradients(order, told):
        """``told``: the micro-batch whose context each micro-batch is given."""
        with platform.megatron():
            model.zero_grad_buffer()
            losses = []
            for number, batch in enumerate(batches):
                scores = model(
                    batch.input_ids,
                    batch.position_ids,
                    None,
                    labels=batch.labels,
                    loss_mask=batch.loss_mask,
                    packed_seq_params=packed_sequences(batch),
                    context=context_of(policy.chunks[0], number, told(batch), step=7),
                )
                losses.append((scores[0] * batch.advantages * batch.token_weights).sum())
            for number in order:
                losses[number].backward()
            found = {name: p.main_grad.clone() for name, p in policy.chunks[0].named_parameters() if p.requires_grad}
        if policy.chunks[0].routing is not None:
            found["load"] = policy.chunks[0].routing.take()[0].float()
        return found

    forward = range(len(batches))
    want = gradients(forward, lambda batch: batch)
    got = gradients(reversed(forward), lambda batch: batch)
    for name, value in want.items():
        assert (got[name] - value).norm() <= 1e-5 * value.norm(), f"{cfg.name}: {name}"
    other = gradients(forward, of_other_tokens)
    assert all((other[name] - value).norm() > 1e-2 * value.norm() for name, value in want.items() if value.any())


def check_recorder(policy, batches):
    """It wants every layer's choice for every micro-batch once."""
    recorder = policy.recorder(batches)
    for wrong in (recorder.arrays, lambda: policy.scores(batches[:1], recorder)):
        with pytest.raises(RuntimeError, match="were not recorded"):
            wrong()
    with pytest.raises(RuntimeError, match="for a second time"):
        policy.scores(batches, recorder)
    recorder, shape = policy.recorder(batches), policy.chunks[0].shape
    policy.scores(batches, recorder)
    for array, batch in zip(recorder.arrays(), batches, strict=True):
        assert array.dtype == np.uint8 and array.max() < shape.experts.count
        assert array.shape == (batch.tokens, len(shape.moe_layers) * shape.experts.topk)


def routed(batch, shape):
    """``batch`` with a routing that no router would choose."""
    if shape.experts is None:
        return batch
    rng, experts = random.Random(int(batch.token_numbers[0])), range(shape.experts.count)
    rows = [
        [expert for _ in shape.moe_layers for expert in rng.sample(experts, shape.experts.topk)]
        for _ in range(batch.tokens)
    ]
    return replace(batch, experts=torch.tensor(rows, dtype=torch.uint8))


def of_other_tokens(batch):
    """The same micro-batch with the dropout masks and routes of other tokens."""
    experts = None if batch.experts is None else 3 - batch.experts
    return replace(batch, token_numbers=batch.token_numbers + (1 << 20), experts=experts)


if __name__ == "__main__":
    main()
