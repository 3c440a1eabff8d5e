"""Memory of the chunked log-probabilities at a realistic size."""

from __future__ import annotations

import pytest
import torch

from grpo_hpc.algo.logprob import VocabularyPart, token_logprobs

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
TOKENS, VOCABULARY, HIDDEN = 32768, 151936, 2048


def test_full_logits_are_never_held():
    """32k tokens over 152k words: logits alone would be 18.5 GiB in fp32; beside inputs and gradients 2 GiB must do."""
    torch.manual_seed(0)
    hidden = torch.randn(TOKENS, HIDDEN, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    weight = (torch.randn(VOCABULARY, HIDDEN, device="cuda") / HIDDEN**0.5).bfloat16().requires_grad_()
    targets = torch.randint(0, VOCABULARY, (TOKENS,), device="cuda")
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    logprobs, _ = token_logprobs(hidden, weight, targets, VocabularyPart(0, VOCABULARY))
    logprobs.sum().backward()
    gradients = sum(p.grad.numel() * p.grad.element_size() for p in (hidden, weight))
    extra = torch.cuda.max_memory_allocated() - before - gradients
    print(f"peak beside inputs and gradients: {extra / 2**30:.2f} GiB")
    assert extra < 2 * 2**30
    with torch.no_grad():
        some = torch.arange(0, TOKENS, 1111, device="cuda")
        exact = (hidden[some].float() @ weight.float().T).log_softmax(-1).gather(1, targets[some, None])[:, 0]
    torch.testing.assert_close(logprobs[some].detach(), exact, atol=0.05, rtol=0.02)
