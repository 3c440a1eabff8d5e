"""Adapters trained for two steps: gradients, adapters and merged weights, and what a checkpoint brings back.

Arguments: output folder, run files for this number of ranks. Each gives OUTPUT/<name>.safetensors, which must not
depend on the layout; a single rank compares its gradients with peft's and leaves a peft folder in OUTPUT/<name>-peft.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from gradients import completions, files_of, gather_gradients, made_step, my_share, packed
from onlayouts import control, each_layout


def main() -> None:
    import torch.distributed as dist
    from safetensors.torch import save_file

    folder = Path(sys.argv[1])
    for cfg, platform in each_layout(sys.argv[2:]):
        tensors, values = two_steps(cfg, platform, folder)
        if dist.get_rank() == 0:
            metadata = {key: repr(value) for key, value in values.items()}
            save_file(tensors, folder / f"{cfg.name}.safetensors", metadata=metadata)


def two_steps(cfg, platform, folder):
    import torch.distributed as dist

    from grpo_hpc.config.batch import schedule
    from grpo_hpc.models.movers import HfExporter
    from grpo_hpc.models.peft_folder import gather_adapters, write_adapter
    from grpo_hpc.train.checkpoints import TrainerState
    from grpo_hpc.train.credit import set_token_weights
    from grpo_hpc.train.megatron.trained_policy import TrainedPolicy

    def everywhere(policy, values=lambda p: p.detach()):
        return gather_adapters(policy.chunks, platform.layer_spec, control(), values)

    plan, policy = schedule(cfg), TrainedPolicy(cfg, platform, control())
    everything = completions(plan.global_batch_size, plan.num_generations)
    set_token_weights(cfg, plan, everything.table)
    batches = packed(cfg, my_share(cfg, everything), platform, everything)
    start = policy.scores(batches)
    policy.update(batches)  # B is no longer zero, so A has a gradient
    assert all(one.equal(other) for one, other in zip(start, policy.base_scores(batches), strict=True))
    assert not any(one.equal(other) for one, other in zip(start, policy.scores(batches), strict=True))
    between = everywhere(policy)
    policy.accumulate(batches)
    if cfg.parallel.use_distributed_optimizer:
        gather_gradients(policy.ddp)
    gradients = everywhere(policy, lambda p: p.main_grad)
    if dist.get_world_size() == 1 and not cfg.tuner.lora_dropout and not platform.is_cuda:
        write_adapter(folder / f"{cfg.name}-peft", between, policy.adapters, cfg.model.path)
        compare_with_peft(cfg, folder / f"{cfg.name}-peft", everything, gradients)

    files = files_of(made_step(cfg, platform, policy))
    saved = files.save(folder / f"{cfg.name}-checkpoints", policy, TrainerState(step=1), platform)
    resumed = TrainedPolicy(cfg, platform, control())
    files.load(saved, resumed, platform)
    numbers, again = policy.update(batches), resumed.update(batches)
    assert numbers == again, (numbers, again)
    after, of_resumed = everywhere(policy), everywhere(resumed)
    assert all(value.equal(of_resumed[name]) for name, value in after.items())
    frozen = {name: v.clone() for name, v in HfExporter(policy.chunks, platform.layer_spec, control()).tensors()}
    merged = {name: v.clone() for name, v in policy.exporter.tensors()}
    tensors = {f"grad/{n}": v for n, v in gradients.items()} | {f"adapter/{n}": v for n, v in after.items()}
    tensors |= {f"base/{n}": v for n, v in frozen.items()} | {f"merged/{n}": v for n, v in merged.items()}
    return {name: value.cpu().contiguous() for name, value in tensors.items()}, numbers


def compare_with_peft(cfg, adapter, everything, gradients):
    """The gradient of the loss, one sequence at a time through transformers and peft."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(cfg.model.path, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, adapter, is_trainable=True).eval()  # eval: no dropout
    for row, sample in zip(everything.table, everything.samples.values(), strict=True):
        tokens = torch.tensor(sample.tokens, dtype=torch.long)
        logits = model(tokens[None]).logits[0, :-1][torch.tensor(sample.mask[1:])] / cfg.rollout.temperature
        labels = torch.tensor(sample.response, dtype=torch.long)
        logprobs = logits.log_softmax(-1).gather(-1, labels[:, None])[:, 0]
        (-float(row["token_weight"] * row["advantage"]) * logprobs.sum()).backward()
    theirs = {n.replace(".default", ""): p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert theirs.keys() == gradients.keys()
    latent = [(name,) for name in ("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj")]
    for stacked in (("q_proj", "k_proj", "v_proj"), ("o_proj",), ("gate_proj", "up_proj"), ("down_proj",), *latent):
        for name, ours in gradients.items():
            if f".{stacked[0]}.lora_A" in name:  # one A of ours stands for several of peft's
                want = sum(theirs[name.replace(stacked[0], part)] for part in stacked)
                assert (ours - want).norm() <= 1e-4 * want.norm(), name
    for name, ours in gradients.items():
        if ".lora_B." in name or ".experts." in name:
            assert ours.any() and (ours - theirs[name]).norm() <= 1e-4 * theirs[name].norm(), name


if __name__ == "__main__":
    main()
