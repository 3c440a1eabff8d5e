"""Measure a weight sync of a random model of a real shape, beside copying as many bytes.

    python tools/bench_sync.py --model qwen3-4b --out sync.json
    python tools/bench_sync.py --model qwen3-1.7b --gpus 2 --set tensor_model_parallel_size=2
    python tools/bench_sync.py --model toy --device cpu

A sync is the trainer's own: weights as Hugging Face tensors from wherever they lie, through vLLM's loaders, the hashes
of sampled tensors compared. The floor is one copy of the engine's weights on the GPU, and the collective that brings a
rank what it does not hold. ``reload`` is the same sync through vLLM's layer by layer reload, ``unchecked`` the
first without hashes, ``stream alone`` without an engine.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from tools.bench.launch import on_ranks
from tools.bench.random_model import SHAPES
from tools.bench.settings import Setting


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print a table, and write JSON with ``--out``."""
    options = _parser().parse_args(argv)
    setting = Setting(options.model, 8 * options.gpus, 32, 32, {}, gpus=options.gpus)
    found = on_ranks(
        "sync_rank", f"sync-{options.model}-{options.gpus}", setting, options.folder, options.device, options.set
    )
    result = {"model": options.model, "gpus": options.gpus, "set": options.set, **found}
    print(table(result))
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    return 0


def table(result: dict[str, Any]) -> str:
    """Seconds, rates and distances from the floor, in Markdown."""
    floor, size = result["seconds"]["floor"], result["bytes"] / 1e9
    rows = [
        f"| {name} | {seconds:.4f} | {size / seconds:,.0f} | {seconds / floor:.1f} |"
        for name, seconds in result["seconds"].items()
    ]
    head = f"{size:.2f} GB, {result['tensors']} tensors, {result['gpus']} ranks\n\n| | s | GB/s | times the floor |"
    return "\n".join([head, "|---|---|---|---|", *rows])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=sorted(SHAPES), default="qwen3-4b")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--gpus", type=int, default=1, help="training processes")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="any key of our run file")
    parser.add_argument("--folder", type=Path, default=Path("runs/sync"), help="scratch: models")
    parser.add_argument("--out", type=Path, help="write everything as JSON")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
