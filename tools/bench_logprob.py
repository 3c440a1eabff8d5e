"""Peak memory and speed of the LM head with log-probabilities and entropy, beside what full logits would take.

python tools/bench_logprob.py                                           # 32,768 tokens x 151,936 rows, on a GPU
python tools/bench_logprob.py --device cpu --tokens 512 --vocabulary 4096 --hidden 128
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from torch import Tensor

from grpo_hpc.algo.logprob import VocabularyPart, token_logprobs

GIB = 2**30


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, and write JSON with ``--json``."""
    options = _parser().parse_args(argv)
    result = measure(options)
    if options.json:
        print(json.dumps(result))
    else:
        for name, value in result.items():
            print(f"{name:24s} {value:,.3f}" if isinstance(value, float) else f"{name:24s} {value}")
    return 0


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Forward and backward on random data. ``extra_gib`` is the peak beyond hidden states, weights and gradients."""
    device, cuda = torch.device(options.device), options.device == "cuda"
    dtype = torch.bfloat16 if cuda else torch.float32
    torch.manual_seed(0)
    hidden = torch.randn(options.tokens, options.hidden, device=device, dtype=dtype, requires_grad=True)
    weight = torch.randn(options.vocabulary, options.hidden, device=device, dtype=dtype).mul_(0.02).requires_grad_()
    buffer = torch.zeros(options.vocabulary, options.hidden, device=device)
    targets = torch.randint(0, options.vocabulary, (options.tokens,), device=device)
    part = VocabularyPart(0, options.vocabulary)

    def step() -> Tensor:
        logprobs, _ = token_logprobs(hidden, weight, targets, part, chunk=options.chunk, grad_buffer=buffer)
        return logprobs.sum()

    step().backward()  # kernels are chosen, gradients exist
    held = _memory(cuda, reset=True)
    _wait(cuda)
    started = time.perf_counter()
    total = step()
    _wait(cuda)
    forward = time.perf_counter() - started
    total.backward()
    _wait(cuda)
    seconds = time.perf_counter() - started
    products = 2.0 * options.tokens * options.vocabulary * options.hidden
    return {
        "tokens": options.tokens,
        "vocabulary": options.vocabulary,
        "hidden": options.hidden,
        "chunk": options.chunk,
        "full_logits_fp32_gib": options.tokens * options.vocabulary * 4 / GIB,
        "held_gib": held / GIB,
        "extra_gib": (_memory(cuda) - held) / GIB,
        "forward_s": forward,
        "backward_s": seconds - forward,
        "tflops": 4 * products / seconds / 1e12,  # forward, logits again, two gradients
    }


def _memory(cuda: bool, reset: bool = False) -> int:
    """Bytes now when ``reset``, else at the peak since; on a CPU always the peak of the process."""
    if not cuda:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if reset:
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    return torch.cuda.max_memory_allocated()


def _wait(cuda: bool) -> None:
    if cuda:
        torch.cuda.synchronize()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tokens", type=int, default=32768)
    parser.add_argument("--vocabulary", type=int, default=151936)
    parser.add_argument("--hidden", type=int, default=2560)
    parser.add_argument("--chunk", type=int, default=1024, help="tokens whose logits exist at a time")
    parser.add_argument("--json", action="store_true")
    return parser


if __name__ == "__main__":
    sys.exit(main())
