"""Megatron logits of packed sequences, gathered over the vocabulary, beside those of transformers.

Arguments: run file, output file. Also re-exports the weights, to be compared with what was loaded.
"""

from __future__ import annotations

import sys


def main() -> None:
    import torch
    import torch.distributed as dist
    from megatron.core import parallel_state as mpu
    from megatron.core.packed_seq_params import PackedSeqParams
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM

    from grpo_hpc.config import load_run
    from grpo_hpc.models.movers import HfExporter
    from grpo_hpc.train.platform import make_platform
    from grpo_hpc.train.policy import build_model, init_model_parallel

    cfg = load_run(sys.argv[1])
    platform = make_platform("cpu")
    platform.init_distributed()
    init_model_parallel(cfg, platform)
    model = build_model(cfg, platform)

    generator = torch.Generator().manual_seed(0)
    sequences = [torch.randint(0, 263, (n,), generator=generator) for n in (17, 1, 30)]
    lengths = [len(s) for s in sequences]
    bounds = torch.tensor([0, *lengths]).cumsum(0).int()
    packed = PackedSeqParams("thd", bounds, bounds, max_seqlen_q=max(lengths), max_seqlen_kv=max(lengths))
    positions = torch.cat([torch.arange(n) for n in lengths])[None]
    with platform.megatron(), torch.no_grad():
        part = model(torch.cat(sequences)[None], positions, None, packed_seq_params=packed)[0].contiguous()
    parts = [torch.empty_like(part) for _ in range(mpu.get_tensor_model_parallel_world_size())]
    dist.all_gather(parts, part, group=mpu.get_tensor_model_parallel_group())
    exported = {f"weight/{k}": v.clone().contiguous() for k, v in HfExporter(model, platform.layer_spec).tensors()}
    if dist.get_rank() == 0:
        reference = AutoModelForCausalLM.from_pretrained(cfg.model.path, dtype=torch.float32)
        with torch.no_grad():
            theirs = torch.cat([reference(s[None]).logits[0] for s in sequences])
        ours = torch.cat(parts, dim=-1)[:, : model.shape.vocab].contiguous()
        save_file({"ours": ours, "theirs": theirs} | exported, sys.argv[2])
    dist.barrier()


if __name__ == "__main__":
    main()
