"""Packing into tensors: nothing is lost, nothing is mixed."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from grpo_hpc.rollout.sample import Key, Sample
from grpo_hpc.train.micro_batches import pack
from grpo_hpc.train.packing import WHOLE_ROW, RowLayout

CPU = torch.device("cpu")


def sample(number, prompt, response):
    tokens, logprobs = np.arange(200, 200 + response), -np.arange(float(response))
    return Sample.single_turn(Key(number, 0), np.arange(100, 100 + prompt), tokens, logprobs, 0, "stop")


def packed(samples, layout=WHOLE_ROW):
    numbers = [float(s.key.position) for s in samples]
    return pack(samples, numbers, [number / 10 for number in numbers], CPU, layout)


def test_positions_score_the_response_tokens_alone():
    batch = packed([sample(1, 3, 2), sample(2, 1, 3)])
    assert batch.input_ids.tolist() == [[100, 101, 102, 200, 100, 200, 201]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 0, 1, 2]]
    assert batch.labels[batch.loss_mask].tolist() == [200, 201, 200, 201, 202]
    assert batch.cu_seqlens.tolist() == [0, 4, 7] and batch.max_seqlen == 4
    assert batch.advantages.tolist() == [1.0, 1.0, 2.0, 2.0, 2.0]
    torch.testing.assert_close(batch.token_weights, torch.tensor([0.1, 0.1, 0.2, 0.2, 0.2]))
    assert batch.sequences.lengths.tolist() == [2, 3] and batch.sequences.index.tolist() == [0, 0, 1, 1, 1]
    assert batch.rollout_logprobs.tolist() == [0.0, -1.0, 0.0, -1.0, -2.0]
    assert batch.old_logprobs is None and batch.ref_logprobs is None


sizes = st.lists(st.tuples(st.integers(1, 20), st.integers(1, 20)), min_size=1, max_size=8)


@given(sizes, st.sampled_from([2, 3, 4]), st.sampled_from([1, 2, 3]))
def test_context_parallel_rows_together_are_the_whole_row(lengths, context, sequence):
    everything = [sample(n, *length) for n, length in enumerate(lengths)]
    whole = packed(everything)
    parts = [packed(everything, RowLayout(context, rank, sequence)) for rank in range(context)]

    tokens = torch.cat([part.loss_mask[0].nonzero()[:, 0] for part in parts])
    assert len(tokens) == len(whole.token_weights)
    assert all(part.tokens == parts[0].tokens and part.tokens % sequence == 0 for part in parts)
    scored = torch.cat([part.scored for part in parts])
    assert scored.sort().values.tolist() == list(range(len(whole.token_weights)))
    for field in ("labels", "input_ids", "position_ids"):
        found = torch.cat([getattr(part, field)[part.loss_mask] for part in parts])
        assert torch.equal(found[scored.argsort()], getattr(whole, field)[whole.loss_mask]), field
    for part in parts:
        assert part.cu_seqlens[-1] == part.tokens * context and not (part.cu_seqlens % (2 * context)).any()
        assert torch.equal(part.token_weights, whole.token_weights) and torch.equal(part.advantages, whole.advantages)


def test_a_rank_holds_one_piece_of_the_head_and_one_of_the_tail():
    one = [sample(1, 3, 5)]  # 7 input tokens, padded to 8 and cut into 4 pieces of 2
    first, second = (packed(one, RowLayout(context=2, context_rank=rank)) for rank in range(2))
    assert first.position_ids.tolist() == [[0, 1, 6, 7]] and second.position_ids.tolist() == [[2, 3, 4, 5]]
    assert first.input_ids.tolist()[0][-1] == 0 and not first.loss_mask[0, -1], "padding at the end is scored by none"
    assert first.scored.tolist() == [4] and second.scored.tolist() == [0, 1, 2, 3]
