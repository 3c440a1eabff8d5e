"""Packing: nothing is lost, nothing is mixed, work is balanced."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from grpo_hpc.rollout.trajectory import Trajectory
from grpo_hpc.train.microbatch import micro_batches, pack, share_of

CPU = torch.device("cpu")


def trajectory(number, prompt, response):
    return Trajectory(
        prompt_id=str(number),
        position=number,
        sample=0,
        prompt_tokens=list(range(100, 100 + prompt)),
        response_tokens=list(range(200, 200 + response)),
        rollout_logprobs=[-float(i) for i in range(response)],
        finish_reason="stop",
        weight_version=0,
        text="",
        advantage=float(number),
    )


def test_positions_score_the_response_tokens_alone():
    batch = pack([trajectory(1, 3, 2), trajectory(2, 1, 3)], samples=4, device=CPU)
    assert batch.input_ids.tolist() == [[100, 101, 102, 200, 100, 200, 201]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 0, 1, 2]]
    assert batch.labels[batch.loss_mask].tolist() == [200, 201, 200, 201, 202]
    assert batch.cu_seqlens.tolist() == [0, 4, 7] and batch.max_seqlen == 4
    assert batch.advantages.tolist() == [1.0, 1.0, 2.0, 2.0, 2.0]
    torch.testing.assert_close(batch.weights, torch.tensor([1 / 8, 1 / 8, 1 / 12, 1 / 12, 1 / 12]))
    assert batch.rollout_logprobs.tolist() == [0.0, -1.0, 0.0, -1.0, -2.0]
    assert batch.old_logprobs is None and batch.ref_logprobs is None


sizes = st.lists(st.tuples(st.integers(1, 20), st.integers(1, 20)), min_size=4, max_size=24)


@given(sizes, st.sampled_from([1, 2, 4]))
def test_shares_are_a_partition_and_weights_sum_to_one(lengths, ranks):
    everything = [trajectory(n, *length) for n, length in enumerate(lengths[: len(lengths) // ranks * ranks])]
    shares = [share_of(everything, rank, ranks) for rank in range(ranks)]
    assert sorted(t.position for share in shares for t in share) == list(range(len(everything)))
    assert len({len(share) for share in shares}) == 1
    longest = max(t.tokens for t in everything)
    loads = [sum(t.tokens for t in share) for share in shares]
    assert max(loads) - min(loads) <= longest
    batches = [batch for share in shares for batch in micro_batches(share, 2, len(everything), CPU)]
    torch.testing.assert_close(sum(batch.weights.sum() for batch in batches), torch.tensor(1.0))
