"""Seconds of a layer of experts: their products one by one, and at once, beside a single product of the same size.

    python tools/bench_experts.py                                       # 64 experts, 8 of them for each token, a GPU
    python tools/bench_experts.py --experts 128 --hidden 2048 --ffn 768 --out experts.json
    python tools/bench_experts.py --device cpu --tokens 64 --experts 4 --topk 2 --hidden 32 --ffn 16

Each row is forward and backward of the first linear layer, or of sorting tokens to experts and adding them up again.
How many tokens an expert has is drawn anew for every turn. The host is done when it has started everything; if that
takes as long as the whole, the GPU waits for it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from torch import Tensor

from grpo_hpc.models.grouped import grouped_linear

CUTLASS = "NVTE_USE_CUTLASS_GROUPED_GEMM"
Turn = Callable[[list[int]], Tensor]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, and write JSON with ``--out``."""
    options = _parser().parse_args(argv)
    found = measure(options)
    print(text(found))
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n")
    return 0


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Medians of seconds by row: until the host is done, and until everything is."""
    rows = {}
    for name, turn in _kinds(options):
        rows[name] = _timed(turn, options)
    flops = 3 * 2 * options.tokens * options.topk * options.hidden * 2 * options.ffn
    shape = {name: getattr(options, name) for name in ("experts", "topk", "hidden", "ffn", "tokens")}
    return {**shape, "device": options.device, "product_flops": flops, "rows": rows}


def text(found: dict[str, Any]) -> str:
    """The figures for a reader."""
    lines = [f"{'':34s} {'ms':>8s} {'host ms':>8s} {'TFLOP/s':>8s}"]
    for name, row in found["rows"].items():
        rate = "" if name.startswith("sorting") else f"{found['product_flops'] / row['whole'] / 1e12:8.1f}"
        lines.append(f"{name:34s} {1e3 * row['whole']:8.3f} {1e3 * row['host']:8.3f} {rate}")
    return "\n".join(lines)


def _timed(turn: Turn, options: argparse.Namespace) -> dict[str, float]:
    draw = torch.Generator().manual_seed(0)
    host, whole = [], []
    for number in range(options.turns + 3):
        popular = torch.empty(options.experts).exponential_(generator=draw)
        chosen = torch.multinomial(popular, options.tokens * options.topk, replacement=True, generator=draw)
        counts = chosen.bincount(minlength=options.experts).tolist()
        _wait(options)
        began = time.perf_counter()
        turn(counts).sum().backward()
        started = time.perf_counter()
        _wait(options)
        if number >= 3:
            host.append(started - began)
            whole.append(time.perf_counter() - began)
    return {"host": median(host), "whole": median(whole)}


def _wait(options: argparse.Namespace) -> None:
    if options.device == "cuda":
        torch.cuda.synchronize()


def _kinds(options: argparse.Namespace) -> Iterator[tuple[str, Turn]]:
    cuda = options.device == "cuda"
    kind = {"device": options.device, "dtype": torch.bfloat16 if cuda else torch.float32}
    rows, out = options.tokens * options.topk, 2 * options.ffn
    tokens = torch.randn(rows, options.hidden, **kind, requires_grad=True)

    def parameter() -> Any:
        made = torch.nn.Parameter(torch.randn(out, options.hidden, **kind) / options.hidden**0.5)
        made.main_grad = torch.zeros(made.shape, device=made.device)
        return made

    one = parameter()
    yield "one dense product", lambda counts: tokens @ one.T
    weights = [parameter() for _ in range(options.experts)]
    yield "at once", lambda counts: grouped_linear(tokens, counts, weights, in_place=True)
    if not cuda:
        parts = lambda counts: zip(tokens.split(counts), weights, strict=True)  # noqa: E731
        yield "one by one", lambda counts: torch.cat([part @ weight.T for part, weight in parts(counts)])
        return
    yield from _engine(options, tokens, weights)
    yield from _sorting(options, kind)


def _engine(options: argparse.Namespace, tokens: Tensor, weights: list[Any]) -> Iterator[tuple[str, Turn]]:
    """TransformerEngine's own, with cuBLAS and with CUTLASS."""
    from transformer_engine.pytorch import GroupedLinear

    layer = GroupedLinear(
        options.experts, options.hidden, 2 * options.ffn, bias=False, params_dtype=torch.bfloat16,
        fuse_wgrad_accumulation=True, device="cuda",
    )  # fmt: skip
    for parameter in layer.parameters():
        parameter.main_grad = torch.zeros(parameter.shape, device="cuda")
        parameter.grad_added_to_main_grad = False
    for name, chosen in (("TransformerEngine, cuBLAS", "0"), ("TransformerEngine, CUTLASS", "1")):
        os.environ[CUTLASS] = chosen
        yield name, lambda counts: layer(tokens, counts)


def _sorting(options: argparse.Namespace, kind: dict[str, Any]) -> Iterator[tuple[str, Turn]]:
    """Megatron's permutation there and back."""
    from megatron.core.transformer.moe.moe_utils import permute, unpermute

    hidden = torch.randn(options.tokens, options.hidden, **kind, requires_grad=True)
    best = torch.rand(options.tokens, options.experts, device="cuda").topk(options.topk).indices
    chosen = torch.zeros(options.tokens, options.experts, dtype=torch.bool, device="cuda").scatter_(1, best, True)
    probabilities = chosen.float().requires_grad_()

    def turn(fused: bool) -> Tensor:
        rows = options.tokens * options.topk
        made, weight, order = permute(hidden, chosen, probabilities, num_out_tokens=rows, fused=fused)
        made = made * weight.unsqueeze(-1).to(made.dtype)
        back: Tensor = unpermute(made, order, hidden.shape, routing_map=chosen, fused=fused)
        return back

    yield "sorting, step by step", lambda counts: turn(False)
    yield "sorting, fused", lambda counts: turn(True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--experts", type=int, default=64)
    parser.add_argument("--topk", type=int, default=8)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--ffn", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--turns", type=int, default=20)
    parser.add_argument("--out", type=Path, help="write everything as JSON")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
