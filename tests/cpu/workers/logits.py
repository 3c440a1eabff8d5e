"""Megatron logits of packed sequences, gathered over the vocabulary, beside those of transformers.

Arguments: output folder, run files of one layout. Each gives OUTPUT/<number>.safetensors, with
the exported weights too, and on one rank the gradients of both for the same loss.
"""

from __future__ import annotations

import sys
import tempfile
from typing import Any

import torch
import torch.distributed as dist
from onlayouts import control
from torch import Tensor

from grpo_hpc.config import RunConfig
from grpo_hpc.train.megatron.platform import Platform


def main() -> None:
    from safetensors.torch import save_file

    from grpo_hpc.config import load_run
    from grpo_hpc.train.megatron.parallel import init_model_parallel
    from grpo_hpc.train.megatron.platform import make_platform

    folder, runs = sys.argv[1], [load_run(file) for file in sys.argv[2:]]
    platform = make_platform(runs[0].resources.device)
    platform.init_distributed()
    init_model_parallel(runs[0], platform)
    for number, cfg in enumerate(runs):
        tensors = compare(cfg, platform)
        if dist.get_rank() == 0:
            save_file(tensors, f"{folder}/{number}.safetensors")
    dist.barrier()


def compare(cfg: RunConfig, platform: Platform) -> dict[str, Tensor]:
    from megatron.core import parallel_state as mpu
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    from grpo_hpc.models.attention import PackedSequences
    from grpo_hpc.models.movers import HfExporter
    from grpo_hpc.train.megatron.trained_policy import build_model

    chunks = build_model(cfg, platform)
    model = chunks[0]
    generator = torch.Generator().manual_seed(0)
    sequences = [torch.randint(0, 263, (n,), generator=generator) for n in (17, 1, 30)]
    lengths = [len(s) for s in sequences]
    bounds = torch.tensor([0, *lengths]).cumsum(0).int().to(platform.device)
    packed = PackedSequences("thd", bounds, bounds, max_seqlen_q=max(lengths), max_seqlen_kv=max(lengths))
    positions = torch.cat([torch.arange(n) for n in lengths])[None].to(platform.device)
    tokens = torch.cat(sequences)[None].to(platform.device)
    with platform.megatron(), torch.no_grad():
        part = model(tokens, positions, None, packed_seq_params=packed)[0].contiguous()
    parts = [torch.empty_like(part) for _ in range(mpu.get_tensor_model_parallel_world_size())]
    dist.all_gather(parts, part, group=mpu.get_tensor_model_parallel_group())
    exported = {
        f"weight/{k}": v.cpu().clone().contiguous()
        for k, v in HfExporter(chunks, platform.layer_spec, control()).tensors()
    }
    auto = AutoModelForImageTextToText if model.shape.vision else AutoModelForCausalLM
    reference = auto.from_pretrained(cfg.model.path, dtype=torch.float32)
    with torch.no_grad():
        theirs = torch.cat([reference(s[None]).logits[0] for s in sequences])
        rounded = torch.cat([reference.to(chunks[0].config.params_dtype)(s[None]).logits[0] for s in sequences]).float()
    ours = torch.cat(parts, dim=-1)[:, : model.shape.vocab].float().cpu().contiguous()
    found = {"ours": ours, "theirs": theirs, "rounded": rounded} | exported
    if dist.get_world_size() > 1 or platform.is_cuda or model.shape.vision:
        return found
    inputs = (tokens, positions, packed)
    return found | gradients(chunks, platform, inputs) | their_gradients(reference, sequences)


def gradients(chunks: list[Any], platform: Platform, inputs: tuple[Any, ...]) -> dict[str, Tensor]:
    """Of a weighted sum of the log-probabilities of next tokens."""
    from grpo_hpc.models.movers import HfExporter

    tokens, positions, packed = inputs
    with platform.megatron():
        scores = chunks[0](
            tokens,
            positions,
            None,
            packed_seq_params=packed,
            labels=tokens.roll(-1),
            loss_mask=torch.ones_like(tokens).bool(),
        )[0]
        mask = positions[0].roll(-1) != 0  # the last token of a sequence has no next one
        (scores[mask] * weights(int(mask.sum()))).sum().backward()
    values = HfExporter(chunks, platform.layer_spec, control(), values=lambda p: p.grad if p.requires_grad else p)
    return {f"gradient/ours/{name}": value.clone().contiguous() for name, value in values.tensors()}


def their_gradients(reference: Any, sequences: list[Tensor]) -> dict[str, Tensor]:
    """The same of transformers; saved as a model would be, so that they have the names of its files."""
    from safetensors.torch import load_file

    logits = [reference(s[None]).logits[0, :-1].log_softmax(-1) for s in sequences]
    scores = torch.cat([part.gather(1, s[1:, None])[:, 0] for part, s in zip(logits, sequences, strict=True)])
    (scores * weights(len(scores))).sum().backward()
    with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        for parameter in reference.parameters():
            if parameter.grad is not None:
                parameter.copy_(parameter.grad)
        reference.save_pretrained(folder)
        return {f"gradient/theirs/{k}": v for k, v in load_file(f"{folder}/model.safetensors").items()}


def weights(count: int) -> Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(1))


if __name__ == "__main__":
    main()
