"""Chunked token log-probabilities against the full softmax, values and gradients."""

from __future__ import annotations

import pytest
import torch

from grpo_hpc.algo.logprob import VocabularyPart, token_logprobs


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("chunk", [1, 5, 64])
@pytest.mark.parametrize("padding", [0, 3])
def test_equal_to_full_softmax(temperature, chunk, padding):
    torch.manual_seed(0)
    tokens, hidden_size, vocabulary = 13, 8, 29
    hidden = torch.randn(tokens, hidden_size, requires_grad=True)
    weight = torch.randn(vocabulary + padding, hidden_size, requires_grad=True)
    targets = torch.randint(0, vocabulary, (tokens,))
    upstream = torch.randn(tokens)

    logprobs, entropy = token_logprobs(hidden, weight, targets, VocabularyPart(0, vocabulary), temperature, chunk)
    got = torch.autograd.grad((logprobs * upstream).sum(), (hidden, weight))

    exact = (hidden.double() @ weight.double()[:vocabulary].T / temperature).log_softmax(-1)
    picked = exact.gather(1, targets[:, None])[:, 0]
    want = torch.autograd.grad((picked * upstream).sum(), (hidden, weight))

    torch.testing.assert_close(logprobs, picked.float(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(entropy, -(exact.exp() * exact).sum(-1).float(), atol=1e-5, rtol=1e-5)
    for mine, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)
    assert not got[1][vocabulary:].any(), "padding rows of the output matrix must get no gradient"


def test_split_over_ranks_equals_whole():
    """Three ranks' parts, worked in lock-step by hand: the reductions are the only thing they share."""
    from concurrent.futures import ThreadPoolExecutor
    from threading import Barrier

    torch.manual_seed(1)
    ranks, vocabulary, rows = 3, 10, 4  # 12 rows held, 2 of them padding
    hidden = torch.randn(7, 6)
    weight = torch.cat((torch.randn(vocabulary, 6), torch.randn(2, 6) * 50))
    targets = torch.tensor([0, 3, 4, 7, 8, 9, 5])
    barrier, box = Barrier(ranks), [None] * ranks

    def reduction(rank, combine):
        def reduce(tensor):
            box[rank] = tensor.clone()
            barrier.wait()
            total = combine(torch.stack(box))
            barrier.wait()
            tensor.copy_(total)

        return reduce

    def work(rank):
        h = hidden.clone().requires_grad_()
        w = weight[rank * rows : (rank + 1) * rows].clone().requires_grad_()
        part = VocabularyPart(
            rank * rows, vocabulary, reduction(rank, lambda x: x.sum(0)), reduction(rank, lambda x: x.amax(0))
        )
        logprobs, _ = token_logprobs(h, w, targets, part)
        return logprobs.detach(), *torch.autograd.grad(logprobs.sum(), (h, w))

    with ThreadPoolExecutor(ranks) as pool:
        results = list(pool.map(work, range(ranks)))

    h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    whole = (h @ w[:vocabulary].T).log_softmax(-1).gather(1, targets[:, None])[:, 0]
    want_h, want_w = torch.autograd.grad(whole.sum(), (h, w))
    for logprobs, _, _ in results:
        torch.testing.assert_close(logprobs, whole.detach())
    torch.testing.assert_close(sum(grad for _, grad, _ in results), want_h)
    torch.testing.assert_close(torch.cat([grad for _, _, grad in results]), want_w)
