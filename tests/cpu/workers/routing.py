"""Experts: balance, and routing that is written down and replayed, before and after the routers move.

Arguments: output folder, run files for this number of ranks. Each gives OUTPUT/<name>.safetensors, which must not
depend on the layout; a single rank compares its gradients with transformers, where the losses are written out slowly.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path
from zlib import crc32

import torch
from gradients import gather_gradients, my_share, packed, trajectories
from onlayouts import each_layout


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
    from grpo_hpc.rollout.trajectory import unpack_experts
    from grpo_hpc.train.lessons import Lessons
    from grpo_hpc.train.megatron.parallel import packing_of
    from grpo_hpc.train.megatron.trained_policy import TrainedPolicy

    plan, policy, rng = schedule(cfg), TrainedPolicy(cfg, platform), random.Random(3)
    several = cfg.parallel.expert_model_parallel_size * cfg.parallel.expert_tensor_parallel_size > 1
    layers = [module for module in policy.chunks[0].modules() if isinstance(module, MoELayer)]
    assert layers and all(isinstance(layer.token_dispatcher, OneRankDispatcher) != several for layer in layers)
    everything = trajectories(plan.global_batch_size, plan.num_generations)
    for t in everything:
        t.reward = rng.random()
    share = my_share(cfg, everything)
    free = packed(cfg, share, platform)
    Lessons(cfg, plan, platform, policy, None, packing_of(cfg)).prepare(everything)
    tensors = {f"routing/{t.position}.{t.sample}": unpack_experts(t.routing, t.tokens - 1) for t in everything}
    routing = [t.routing for t in everything]

    def gradients(replayed):
        for t, text in zip(everything, routing, strict=True):
            t.routing = text if replayed else None
        policy.accumulate(packed(cfg, share, platform))
        if cfg.parallel.use_distributed_optimizer:
            gather_gradients(policy.ddp)
        exporter = HfExporter(policy.chunks, platform.layer_spec, values=lambda p: p.main_grad)
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
        compare_with_transformers(cfg, policy, everything, routing, moved)
    for when, (found, _) in {"same": chosen, "moved": moved, "free": moved_freely}.items():
        tensors |= {f"{when}/{name}": value for name, value in found.items()}
    numbers = {f"{when}/{k}": v for when, (_, m) in {"same": chosen, "moved": moved}.items() for k, v in m.items()}
    return {name: value.contiguous() for name, value in tensors.items()}, numbers


def biased(cfg, platform, folder):
    """Biases after each of three steps; on one rank the last two are made by a policy restored from a checkpoint."""
    import torch.distributed as dist

    from grpo_hpc.config.batch import schedule
    from grpo_hpc.train import checkpoints
    from grpo_hpc.train.checkpoints import TrainerState
    from grpo_hpc.train.credit import set_token_weights
    from grpo_hpc.train.megatron.trained_policy import TrainedPolicy

    plan, policy = schedule(cfg), TrainedPolicy(cfg, platform)
    everything = trajectories(plan.global_batch_size, plan.num_generations)
    set_token_weights(cfg, plan, everything)
    share = my_share(cfg, everything)
    batches = packed(cfg, share, platform)
    tensors, numbers = {}, {}
    for step in range(3):
        before, recorder = biases(policy), policy.recorder(batches)
        policy.scores(batches, recorder)
        routing = recorder.texts(share)
        numbers |= {f"{step}/{name}": value for name, value in policy.update(batches).items()}
        tensors |= {f"{step}/{name}": value for name, value in biases(policy).items()}
        if dist.get_world_size() == 1:
            check_biases(cfg, before, biases(policy), [t for batch in share for t in batch], routing)
            if step == 0:
                saved = checkpoints.save(folder / f"{cfg.name}-checkpoints", policy, TrainerState(step=1), platform)
                policy = TrainedPolicy(cfg, platform)
                checkpoints.load(saved, policy, platform)
                assert all(value.equal(tensors[f"0/{name}"]) for name, value in biases(policy).items())
    return tensors, numbers


def interrupted(cfg, platform, folder):
    """All steps of one rollout, and those after the first again by a policy that was restored behind it."""
    from grpo_hpc.config.batch import schedule
    from grpo_hpc.train import checkpoints
    from grpo_hpc.train.checkpoints import TrainerState
    from grpo_hpc.train.lessons import Lessons
    from grpo_hpc.train.megatron.parallel import packing_of
    from grpo_hpc.train.megatron.trained_policy import TrainedPolicy

    def steps(policy, rollout, used):
        lessons = Lessons(cfg, plan, platform, policy, None, packing_of(cfg))
        if not used:
            lessons.prepare(rollout)
        for number in range(used, plan.steps_per_rollout):
            lesson = lessons.lesson(rollout, number)
            yield policy.update(lessons.batches(lesson), lesson.threshold)

    plan, rng = schedule(cfg), random.Random(3)
    rollout = trajectories(plan.generation_batch_size, plan.num_generations)
    for t in rollout:
        t.reward = rng.random()
    policy = TrainedPolicy(cfg, platform)
    undisturbed = steps(policy, rollout, 0)
    first = next(undisturbed)
    half = TrainerState(step=1, rollout=rollout, rollout_used=1)
    saved = checkpoints.save(folder / f"{cfg.name}-checkpoints", policy, half, platform)
    want = list(undisturbed)
    resumed = TrainedPolicy(cfg, platform)
    state = checkpoints.load(saved, resumed, platform)
    assert state == half and all(t.routing for t in state.rollout)
    assert list(steps(resumed, state.rollout, state.rollout_used)) == want
    for (name, one), (_, other) in zip(policy.exporter.tensors(), resumed.exporter.tensors(), strict=True):
        assert one.equal(other), name
    changed = {str(number): values["moe/replay_changed"] for number, values in enumerate([first, *want])}
    return {"steps": torch.tensor(len(changed))}, changed


def biases(policy):
    return {n: value.clone() for n, value in policy.exporter.tensors() if n.endswith("e_score_correction_bias")}


def check_biases(cfg, before, after, everything, routing):
    """Each expert is counted by hand, over all tokens of the step; its bias moves against its excess."""
    from grpo_hpc.rollout.trajectory import unpack_experts

    moved = 0
    for place, (name, old) in enumerate(before.items()):
        count = [0] * len(old)
        for t, text in zip(everything, routing, strict=True):
            for row in unpack_experts(text, t.tokens - 1).tolist():
                topk = len(row) // len(before)
                for expert in row[place * topk : (place + 1) * topk]:
                    count[expert] += 1
        assert sum(count) == topk * sum(t.tokens - 1 for t in everything)
        for expert, times in enumerate(count):
            excess = times * len(count) - sum(count)
            rate = cfg.moe.moe_router_bias_update_rate * (0 if excess == 0 else -1 if excess > 0 else 1)
            assert abs(float(after[name][expert]) - (float(old[expert]) + rate)) < 1e-6, (name, expert, times)
            moved += rate != 0
    assert moved > len(before)


def compare_with_transformers(cfg, policy, everything, routing, moved):
    """One sequence at a time, with the experts that were written down, and every loss as its formula says."""
    from transformers import AutoModelForCausalLM

    from grpo_hpc.rollout.trajectory import unpack_experts

    model = AutoModelForCausalLM.from_pretrained(cfg.model.path, dtype=torch.float32)
    weights = dict(policy.exporter.tensors())
    gates = [layer.mlp.gate for layer in model.model.layers]
    for number, gate in enumerate(gates):
        gate.weight.data.copy_(weights[f"model.layers.{number}.mlp.gate.weight"])
        gate.forward = lambda hidden, gate=gate: told(gate, hidden)
    topk, count = gates[0].top_k, gates[0].num_experts
    sums = {"moe/aux_loss": 0.0, "moe/z_loss": 0.0}
    for t, text in zip(everything, routing, strict=True):
        experts = unpack_experts(text, t.tokens - 1).long().view(t.tokens - 1, -1, topk)
        for number, gate in enumerate(gates):
            gate.told = experts[:, number]
        tokens = torch.tensor([t.prompt_tokens + t.response_tokens])[:, :-1]
        logits = model(tokens).logits[0, len(t.prompt_tokens) - 1 :] / cfg.rollout.temperature
        logprobs = logits.log_softmax(-1).gather(-1, torch.tensor(t.response_tokens)[:, None])[:, 0]
        ratio = (logprobs - torch.tensor(t.old_logprobs)).exp()
        gain = torch.minimum(ratio * t.advantage, ratio.clamp(0.8, 1.2) * t.advantage)
        loss = -t.token_weight * gain.sum()
        for gate in gates:
            aux = torch.tensor(0.0)
            for expert in range(count):
                sent = sum(expert in row for row in gate.told.tolist())
                mean = gate.logits.softmax(-1)[:, expert].mean()
                aux = aux + count / (topk * len(gate.told)) * sent * mean
            z = torch.stack([row.exp().sum().log() ** 2 for row in gate.logits]).mean()
            loss = loss + (cfg.moe.moe_aux_loss_coeff * aux + cfg.moe.moe_z_loss_coeff * z) / len(everything)
            sums["moe/aux_loss"] += float(aux) / len(everything) / len(gates)
            sums["moe/z_loss"] += float(z) / len(everything) / len(gates)
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
