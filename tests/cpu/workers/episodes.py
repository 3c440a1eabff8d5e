"""Gradients of episodes of several turns and branches, in every layout, against a loop over labels.

Arguments: run files. The loop goes through transformers, one sequence and one label at a time; what each token is worth
it works out for itself.
"""

from __future__ import annotations

import random
import sys

import numpy as np
import torch
from gradients import begun, made_step
from onlayouts import control, each_layout
from reference import estimators as reference

COEF = 0.5  # of turns


def main() -> None:
    import torch.distributed as dist

    known = {}
    for cfg, platform in each_layout(sys.argv[1:]):
        kind = cfg.algorithm.loss_type
        if kind != "real":  # which takes nothing but signs
            cfg = cfg.model_copy(update={"algorithm": cfg.algorithm.model_copy(update={"turn_advantage_coef": COEF})})
        loss, gradients = ours(cfg, platform)
        if dist.get_rank() == 0:
            known[kind] = wanted, want = known.get(kind) or by_label(cfg)
            assert abs(loss - wanted) <= 1e-6, (cfg.name, loss, wanted)
            assert gradients.keys() == want.keys()
            for name, value in gradients.items():
                assert value.any(), name
                difference = (value - want[name]).norm() / want[name].norm()
                assert difference <= 2e-5, f"{cfg.name}: {name} differs by {difference:.2e} relative"


def episodes(cfg):
    """Episodes of one to three branches with their reward: random masks, turns within them, rewards for some turns.

    The third of each group failed, and has no reward.
    """
    from grpo_hpc.rollout.sample import Key, Sample

    rng = random.Random(5)
    made = []
    for number in range(cfg.batch.global_batch_size):
        position, sample = divmod(number, cfg.batch.num_generations)
        branches = []
        for branch in range(1 + number % 3):
            length = rng.randint(4, 20)
            mask = np.array([False] + [rng.random() < 0.5 for _ in range(length - 1)])
            mask[rng.randrange(1, length)] = True
            count = int(mask.sum())
            ends = sorted({*(rng.randint(1, count) for _ in range(2)), count})
            rewards = [rng.choice([None, -1.0, 0.5, 2.0]) for _ in ends] if number % 4 != 1 else []
            branches.append(
                Sample(
                    Key(position, sample, branch),
                    np.array([rng.randrange(256) for _ in range(length)], np.int32),  # transformers trains no padding
                    mask,
                    np.array([-rng.random() for _ in range(count)], np.float32),
                    np.zeros(count, np.int32),
                    np.array([(end, 0) for end in ends], np.int32),
                    turn_rewards=np.array([np.nan if r is None else r for r in rewards], np.float32),
                )
            )
        made.append((branches, None if sample == 2 else rng.choice([0.0, 1.0, 1.5])))
    return made


def ours(cfg, platform):
    """Loss and gradient of the step as Hugging Face tensors."""
    from grpo_hpc.models.movers import HfExporter
    from grpo_hpc.rollout.sample import summaries
    from grpo_hpc.train.experience import Experience
    from grpo_hpc.train.megatron.trained_policy import TrainedPolicy

    policy = TrainedPolicy(cfg, platform, control())
    step, given = made_step(cfg, platform, policy), episodes(cfg)
    samples = [sample for branches, _ in given for sample in branches]
    table = summaries(samples, 0, 1)
    table["reward"] = [np.nan if reward is None else reward for branches, reward in given for _ in branches]
    experience = begun(step, Experience(table, [], {sample.key: sample for sample in samples}))
    advantages, threshold, constant = step.settled(experience)
    policy.accumulate(step.batches(experience, advantages), threshold)
    exporter = HfExporter(policy.chunks, platform.layer_spec, control(), values=lambda p: p.main_grad)
    gradients = {name: value.clone() for name, value in exporter.tensors()}
    return policy.update(step.batches(experience, advantages), threshold)["loss"] + constant, gradients


def by_label(cfg):
    """The same from the log ratio of each sampled token, which is 0, and what the token is worth."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(cfg.model.path, dtype=torch.float32)
    given = episodes(cfg)
    groups = [branches[0].key.position for branches, _ in given]
    outcomes = reference.advantages([reward for _, reward in given], groups, "grpo", "group")
    told = [[r for s in branches for r in s.turn_rewards.tolist()] if w is not None else [] for branches, w in given]
    turns = [[None if np.isnan(r) else r for r in rewards] for rewards in told]
    of_turns = reference.turn_advantages(turns, groups, "group", COEF)
    ratios = [[ratio for sample in branches for ratio in log_ratios(model, sample)] for branches, _ in given]
    if cfg.algorithm.loss_type == "real":
        total = real(ratios, outcomes, groups, cfg.algorithm.real_tau)
    else:
        worth = [of_tokens(branches, *told) for (branches, _), *told in zip(given, outcomes, of_turns, strict=True)]
        total = -sum(
            advantage * ratio.exp() / (len(given) * len(own))
            for own, values in zip(ratios, worth, strict=True)
            for ratio, advantage in zip(own, values, strict=True)
        )
    total.backward()
    return float(total), {name: p.grad for name, p in model.named_parameters()}


def log_ratios(model, sample):
    logprobs = model(torch.tensor(sample.tokens)[None].long()).logits[0].log_softmax(-1)
    for place in range(1, len(sample.tokens)):
        if sample.mask[place]:
            logprob = logprobs[place - 1, int(sample.tokens[place])]
            yield logprob - logprob.detach()


def of_tokens(branches, outcome, of_turns):
    """What each sampled token is worth: its completion's outcome, and what its turn adds."""
    later = iter(of_turns)
    for sample in branches:
        begin = 0
        for end in sample.turns[:, 0].tolist():
            added = next(later) if of_turns else 0.0
            yield from [outcome + added] * (end - begin)
            begin = end


def real(ratios, outcomes, groups, tau):
    """Rewards as labels: the mean over groups; an episode's score is the mean over the tokens of all its branches."""
    total, numbers = torch.zeros(()), sorted(set(groups))
    for group in numbers:
        members = [(sum(own) / len(own), a) for own, a, g in zip(ratios, outcomes, groups, strict=True) if g == group]
        good, bad = [s for s, a in members if a > 0], [s for s, a in members if a <= 0]
        if good and bad:
            total = total + (1 + sum((s / tau).exp() for s in bad)).log()
            total = total + (1 + sum((-s / tau).exp() for s in good)).log()
    return total / len(numbers)


if __name__ == "__main__":
    main()
