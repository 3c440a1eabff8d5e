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


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_entropy_has_its_exact_gradient_when_asked_for(temperature):
    torch.manual_seed(3)
    hidden, weight = torch.randn(13, 8, requires_grad=True), torch.randn(32, 8, requires_grad=True)
    targets, up, up_entropy = torch.randint(0, 29, (13,)), torch.randn(13), torch.randn(13)
    part = VocabularyPart(0, 29)
    logprobs, entropy = token_logprobs(hidden, weight, targets, part, temperature, 5, entropy_gradient=True)
    got = torch.autograd.grad((logprobs * up + entropy * up_entropy).sum(), (hidden, weight))

    exact = (hidden.double() @ weight.double()[:29].T / temperature).log_softmax(-1)
    picked, exact_entropy = exact.gather(1, targets[:, None])[:, 0], -(exact.exp() * exact).sum(-1)
    want = torch.autograd.grad((picked * up + exact_entropy * up_entropy).sum(), (hidden, weight))
    for mine, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)
    assert not token_logprobs(hidden, weight, targets, part)[1].requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradient_of_many_chunks_is_summed_in_float32(dtype):
    """Beside a buffer autograd gets zeros; two calls and all chunks meet in the buffer without rounding to bfloat16."""
    torch.manual_seed(2)
    hidden = torch.randn(2000, 8).to(dtype)
    weight = torch.randn(12, 8).to(dtype).requires_grad_()
    targets, part = torch.randint(0, 11, (2000,)), VocabularyPart(0, 11)
    buffer = torch.zeros(12, 8)
    for half in (slice(0, 1000), slice(1000, 2000)):
        logprobs, _ = token_logprobs(hidden[half], weight, targets[half], part, chunk=4, grad_buffer=buffer)
        (given,) = torch.autograd.grad(logprobs.sum(), weight)
        assert given.shape == weight.shape and not given.any()

    exact = weight.detach().double().requires_grad_()
    picked = (hidden.double() @ exact[:11].T).log_softmax(-1).gather(1, targets[:, None])
    (want,) = torch.autograd.grad(picked.sum(), exact)
    error = (buffer - want).norm() / want.norm()
    assert error < (1e-5 if dtype == torch.float32 else 0.01)
    (alone,) = torch.autograd.grad(token_logprobs(hidden, weight, targets, part, chunk=4)[0].sum(), weight)
    assert alone.dtype == dtype and (alone - want).norm() / want.norm() < (1e-5 if dtype == torch.float32 else 0.01)


def test_frozen_output_matrix_gets_no_gradient():
    hidden = torch.randn(5, 4, requires_grad=True)
    weight = torch.randn(7, 4)
    logprobs, _ = token_logprobs(hidden, weight, torch.arange(5), VocabularyPart(0, 7))
    logprobs.sum().backward()
    assert hidden.grad.any() and weight.grad is None


@pytest.mark.parametrize("vocabulary", [10, 8])
def test_split_over_ranks_equals_whole(vocabulary):
    """Three ranks' parts, worked in lock-step by hand: the reductions are the only thing they share."""
    from concurrent.futures import ThreadPoolExecutor
    from threading import Barrier

    torch.manual_seed(1)
    ranks, rows = 3, 4  # of 12 rows held 2 or 4 are padding: all that the last rank has
    hidden = torch.randn(7, 6)
    weight = torch.cat((torch.randn(vocabulary, 6), torch.randn(12 - vocabulary, 6) * 50))
    targets = torch.tensor([0, 3, 4, 7, 8, 9, 5]) % vocabulary
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
