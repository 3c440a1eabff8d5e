"""Experts: balance, and routing that is written down and replayed, before and after the routers move.

Arguments: output folder, run files for this number of ranks. Each gives OUTPUT/<name>.safetensors, which must not
depend on the layout; a single rank compares its gradients with transformers, where the losses are written out slowly.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path
from zlib import crc32

import numpy as np
import torch
from gradients import begun, completions, everybodys, files_of, gather_gradients, made_step, my_share, packed
from onlayouts import control, each_layout

from grpo_hpc.rollout.sample import keys_of


def main() -> None:
    import torch.distributed as dist
    from safetensors.torch import save_file

    folder = Path(sys.argv[1])
    for cfg, platform in each_layout(sys.argv[2:]):
        if cfg.moe.moe_router_bias_update_rate:
            tensors, numbers = biased(cfg, platform, folder)
        elif cfg.batch.num_iterations > 1:
            tensors, numbers = interrupted(cfg, platform, folder)
        else:
            tensors, numbers = replay(cfg, platform)
        if dist.get_rank() == 0:
            metadata = {key: repr(value) for key, value in numbers.items()}
            save_file(tensors, folder / f"{cfg.name}.safetensors", metadata=metadata)


def replay(cfg, platform):
    import torch.distributed as dist
    from megatron.core.transformer.moe.moe_layer import MoELayer

    from grpo_hpc.config.batch import schedule
    from grpo_hpc.models.dispatch import OneRankDispatcher
    from grpo_hpc.models.movers import HfExporter, local_parameters
    from grpo_hpc.models.routing import routing_load, routing_metrics
    from grpo_hpc.train.megatron.trained_policy import TrainedPolicy

    plan, policy, rng = schedule(cfg), TrainedPolicy(cfg, platform, control()), random.Random(3)
    several = cfg.parallel.expert_model_parallel_size * cfg.parallel.expert_tensor_parallel_size > 1
    layers = [module for module in policy.chunks[0].modules() if isinstance(module, MoELayer)]
    assert layers and all(isinstance(layer.token_dispatcher, OneRankDispatcher) != several for layer in layers)
    everything = completions(plan.global_batch_size, plan.num_generations)
    everything.table["reward"] = [rng.random() for _ in everything.table]
    step = made_step(cfg, platform, policy)
    experience = begun(step, everything)
    share = experience.steps[0][step._exchange.data_rank]
    routing = {key: value for part in everybodys(experience.routing) for key, value in part.items()}
    assert routing.keys() == everything.samples.keys()
    tensors = {f"routing/{k.position}.{k.sample}": torch.from_numpy(v.copy()) for k, v in routing.items()}

    def batches(replayed):
        experience.routing = {key: routing[key] for key in experience.samples} if replayed else None
        return packed(cfg, share, platform, experience)

    free = batches(False)

    def gradients(replayed):
        policy.accumulate(batches(replayed))
        if cfg.parallel.use_distributed_optimizer:
            gather_gradients(policy.ddp)
        exporter = HfExporter(policy.chunks, platform.layer_spec, control(), values=lambda p: p.main_grad)
        found = {name: value.clone() for name, value in exporter.tensors()}
        return found, routing_metrics(*routing_load(policy._routing))

    chosen, replayed = gradients(False), gradients(True)
    for name, value in chosen[0].items():
        # padding may go elsewhere, which changes the order of sums
        assert (value - replayed[0][name]).norm() <= 1e-6 * value.norm(), f"{cfg.name}: replay changed {name}"
    assert replayed[1].pop("moe/replay_changed") == 0
    assert all(abs(replayed[1][name] - value) <= 1e-6 * abs(value) for name, value in chosen[1].items())
    scores = policy.scores(free)
    for name, parameter in local_parameters(policy.chunks).items():
        if name.endswith("router.weight"):
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(crc32(name.encode())))
            parameter.data.add_(0.1 * noise)
    moved, moved_freely = gradients(True), gradients(False)
    assert all(not one.equal(other) for one, other in zip(scores, policy.scores(free), strict=True))
    if dist.get_world_size() == 1:
        compare_with_transformers(cfg, policy, experience, routing, moved)
    for when, (found, _) in {"same": chosen, "moved": moved, "free": moved_freely}.items():
        tensors |= {f"{when}/{name}": value for name, value in found.items()}
    numbers = {f"{when}/{k}": v for when, (_, m) in {"same": chosen, "moved": moved}.items() for k, v in m.items()}
    return {name: value.contiguous() for name, value in tensors.items()}, numbers


def biased(cfg, platform, folder):
    """Biases after each of three steps; on one rank the last two are made by a policy restored from a checkpoint."""
    import torch.distributed as dist

    from grpo_hpc.config.batch import schedule
    from grpo_hpc.train.checkpoints import TrainerState
    from grpo_hpc.train.credit import set_token_weights
    from grpo_hpc.train.megatron.trained_policy import TrainedPolicy

    plan, policy = schedule(cfg), TrainedPolicy(cfg, platform, control())
    everything = completions(plan.global_batch_size, plan.num_generations)
    set_token_weights(cfg, plan, everything.table)
    share = my_share(cfg, everything)
    batches = packed(cfg, share, platform, everything)
    files = files_of(made_step(cfg, platform, policy))
    tensors, numbers = {}, {}
    for step in range(3):
        before, recorder = biases(policy), policy.recorder(batches)
        policy.scores(batches, recorder)
        routing = recorder.arrays()
        numbers |= {f"{step}/{name}": value for name, value in policy.update(batches).items()}
        tensors |= {f"{step}/{name}": value for name, value in biases(policy).items()}
        if dist.get_world_size() == 1:
            check_biases(cfg, before, biases(policy), routing)
            if step == 0:
                saved = files.save(folder / f"{cfg.name}-checkpoints", policy, TrainerState(step=1), platform)
                policy = TrainedPolicy(cfg, platform, control())
                files.load(saved, policy, platform)
                assert all(value.equal(tensors[f"0/{name}"]) for name, value in biases(policy).items())
    return tensors, numbers


def interrupted(cfg, platform, folder):
    """All steps of one rollout, and those after the first again by a policy that was restored behind it."""
    from grpo_hpc.config.batch import schedule
    from grpo_hpc.train.checkpoints import TrainerState
    from grpo_hpc.train.megatron.trained_policy import TrainedPolicy

    def steps(step, experience, already):
        for number in range(already, plan.steps_per_rollout):
            yield step(experience, number).metrics

    plan, rng = schedule(cfg), random.Random(3)
    everything = completions(plan.generation_batch_size, plan.num_generations)
    everything.table["reward"] = [rng.random() for _ in everything.table]
    policy = TrainedPolicy(cfg, platform, control())
    step = made_step(cfg, platform, policy)
    files, experience = files_of(step), begun(step, everything)
    undisturbed = steps(step, experience, 0)
    first = next(undisturbed)
    half = TrainerState(step=1, position=4, experience=experience)
    saved = files.save(folder / f"{cfg.name}-checkpoints", policy, half, platform)
    want = list(undisturbed)
    resumed = TrainedPolicy(cfg, platform, control())
    again = made_step(cfg, platform, resumed)
    state = files_of(again).load(saved, resumed, platform)
    assert state.experience.used == 1 and state.experience.routing.keys() == state.experience.samples.keys()
    assert list(steps(again, state.experience, 1)) == want
    for (name, one), (_, other) in zip(policy.exporter.tensors(), resumed.exporter.tensors(), strict=True):
        assert one.equal(other), name
    changed = {str(number): values["moe/replay_changed"] for number, values in enumerate([first, *want])}
    return {"steps": torch.tensor(len(changed))}, changed


def biases(policy):
    return {n: value.clone() for n, value in policy.exporter.tensors() if n.endswith("e_score_correction_bias")}


def check_biases(cfg, before, after, routing):
    """Each expert is counted by hand, over all tokens of the step; its bias moves against its excess."""
    moved = 0
    for place, (name, old) in enumerate(before.items()):
        count = [0] * len(old)
        rows = np.concatenate(routing).tolist()  # on one rank no token is padding
        for row in rows:
            topk = len(row) // len(before)
            for expert in row[place * topk : (place + 1) * topk]:
                count[expert] += 1
        assert sum(count) == topk * len(rows)
        for expert, times in enumerate(count):
            excess = times * len(count) - sum(count)
            rate = cfg.moe.moe_router_bias_update_rate * (0 if excess == 0 else -1 if excess > 0 else 1)
            assert abs(float(after[name][expert]) - (float(old[expert]) + rate)) < 1e-6, (name, expert, times)
            moved += rate != 0
    assert moved > len(before)


def compare_with_transformers(cfg, policy, experience, routing, moved):
    """One sequence at a time, with the experts that were written down, and every loss as its formula says."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(cfg.model.path, dtype=torch.float32)
    weights = dict(policy.exporter.tensors())
    gates = [layer.mlp.gate for layer in model.model.layers]
    for number, gate in enumerate(gates):
        gate.weight.data.copy_(weights[f"model.layers.{number}.mlp.gate.weight"])
        gate.forward = lambda hidden, gate=gate: told(gate, hidden)
    topk, count = gates[0].top_k, gates[0].num_experts
    sums = {"moe/aux_loss": 0.0, "moe/z_loss": 0.0}
    for key, row in zip(keys_of(experience.table), experience.table, strict=True):
        sample = experience.samples[key]
        experts = torch.tensor(routing[key], dtype=torch.long).view(len(sample.tokens) - 1, -1, topk)
        for number, gate in enumerate(gates):
            gate.told = experts[:, number]
        logits = model(torch.tensor(sample.tokens, dtype=torch.long)[None, :-1]).logits[0, sample.mask[1:]]
        labels = torch.tensor(sample.response, dtype=torch.long)[:, None]
        logprobs = (logits / cfg.rollout.temperature).log_softmax(-1).gather(-1, labels)[:, 0]
        ratio = (logprobs - torch.tensor(experience.old[key])).exp()
        advantage = float(row["advantage"])
        gain = torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)
        loss = -float(row["token_weight"]) * gain.sum()
        for gate in gates:
            aux = torch.tensor(0.0)
            for expert in range(count):
                sent = sum(expert in row for row in gate.told.tolist())
                mean = gate.logits.softmax(-1)[:, expert].mean()
                aux = aux + count / (topk * len(gate.told)) * sent * mean
            z = torch.stack([row.exp().sum().log() ** 2 for row in gate.logits]).mean()
            loss = loss + (cfg.moe.moe_aux_loss_coeff * aux + cfg.moe.moe_z_loss_coeff * z) / len(experience.table)
            sums["moe/aux_loss"] += float(aux) / len(experience.table) / len(gates)
            sums["moe/z_loss"] += float(z) / len(experience.table) / len(gates)
        loss.backward()
    gradients, numbers = moved
    assert all(abs(numbers[name] - value) <= 1e-5 * value for name, value in sums.items()), (sums, numbers)
    for name, parameter in model.named_parameters():
        ours = gradients.get(name)
        if ours is None:
            at, part = name.rsplit(".", 1)
            parts = ["gate_proj", "up_proj"] if part == "gate_up_proj" else ["down_proj"]
            ours = torch.stack([torch.cat([gradients[f"{at}.{e}.{p}.weight"] for p in parts]) for e in range(count)])
        assert (ours - parameter.grad).norm() <= 1e-4 * parameter.grad.norm(), name


def told(gate, hidden):
    gate.logits = torch.nn.functional.linear(hidden.reshape(-1, gate.hidden_dim), gate.weight)
    values = gate.logits.softmax(-1).gather(1, gate.told)
    return gate.logits, values / values.sum(-1, keepdim=True), gate.told


if __name__ == "__main__":
    main()
