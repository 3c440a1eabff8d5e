"""Save after two optimizer steps, load into a fresh policy, and go on with both: they must stay equal to the bit.

A reference model that was copied before that must still be what the model folder holds.

Arguments: output folder, run files for this number of ranks. Prints what differs and fails.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import torch.distributed as dist
from gradients import begun, completions, files_of, made_step, my_share, packed
from onlayouts import control, each_layout

from grpo_hpc.rollout.collect import Collected
from grpo_hpc.rollout.sample import Key
from grpo_hpc.rollout.scoring import Scored


def main() -> None:
    import torch

    from grpo_hpc.config.batch import schedule
    from grpo_hpc.train import checkpoints
    from grpo_hpc.train.checkpoints import TrainerState
    from grpo_hpc.train.megatron.trained_policy import TrainedPolicy, build_model, copy_of

    folder = Path(sys.argv[1])
    for cfg, platform in each_layout(sys.argv[2:]):
        if dist.get_rank():
            checkpoints.is_complete = only_the_first_rank
        plan = schedule(cfg)
        everything = completions(plan.global_batch_size, plan.num_generations)
        batches = packed(cfg, my_share(cfg, everything), platform, everything)

        policy = TrainedPolicy(cfg, platform, control())
        for _ in range(2):
            policy.update(batches)
        step = made_step(cfg, platform, policy)
        files, experience = files_of(step), begun(step, everything)
        experience.used, experience.old, experience.ref = 1, logprobs(experience, 1.0), logprobs(experience, 2.0)
        half_used = TrainerState(step=2, position=7, experience=experience, carried=carried(everything))
        saved = files.save(folder / cfg.name, policy, half_used, platform)
        resumed = TrainedPolicy(cfg, platform, control())
        reference = copy_of(resumed.chunks, cfg, platform)
        assert found_whole(saved) == saved
        state = files.load(saved, resumed, platform)
        assert (state.step, state.position) == (2, 7)
        assert_same(state.experience, experience)
        assert state.carried.table.tobytes() == half_used.carried.table.tobytes()
        assert_same_samples(state.carried.samples, half_used.carried.samples)
        with counted_reading() as read:
            again = build_model(cfg, platform)
        check_reading(sum(read), again)
        check_reference(reference, again, resumed)
        assert all(s.text == f"text {k.sample}" for k, s in state.carried.scored.items())
        for step in (3, 4):
            before, after = policy.update(batches), resumed.update(batches)
            assert before == after, f"step {step} of {cfg.name}: {before} and {after}"
            for (name, one), (_, other) in zip(policy.exporter.tensors(), resumed.exporter.tensors(), strict=True):
                assert torch.equal(one, other), f"{name} after step {step} of {cfg.name}: {(one - other).abs().max()}"
        check_rate(cfg, platform, files, saved)


def check_rate(cfg, platform, files, saved):
    """A learning rate that was changed before a resume is obeyed."""
    from grpo_hpc.train.megatron.trained_policy import TrainedPolicy

    lower = cfg.model_copy(update={"optimizer": cfg.optimizer.model_copy(update={"lr": cfg.optimizer.lr / 8})})
    policy = TrainedPolicy(lower, platform, control())
    files.load(saved, policy, platform)
    assert {group["lr"] for group in policy.optimizer.param_groups} == {lower.optimizer.lr}


def found_whole(saved):
    """What a resume takes after a block of a newer checkpoint was lost, at the same size; all of it has a digest."""
    from grpo_hpc.train import checkpoints

    shared, said = control(), []

    def damage():
        newer = saved.with_name("step_00000003")
        shutil.copytree(saved, newer)
        listed = json.loads((newer / "manifest.json").read_text())["files"]
        assert listed.keys() == {str(p.relative_to(newer)) for p in newer.rglob("*") if p.is_file()} - {"manifest.json"}
        assert all(sum(piece[2] for piece in file["pieces"]) == file["size"] for file in listed.values())
        largest = max((newer / "megatron").glob("*.distcp"), key=lambda path: path.stat().st_size)
        with largest.open("r+b") as file:
            file.seek(largest.stat().st_size // 2 // 4096 * 4096)
            file.write(bytes(4096))

    shared.from_first(damage, "a damaged checkpoint")
    found = checkpoints.newest_whole(saved.parent, shared, said.append)
    if shared.first:
        assert len(said) == 1 and ".distcp are not what was written" in said[0], said
        shutil.rmtree(saved.with_name("step_00000003.damaged"))
    return found


def logprobs(experience, value):
    """Some for every completion of this rank, where they are used: on the last stage."""
    from megatron.core import parallel_state as mpu

    if not mpu.is_pipeline_last_stage():
        return None
    return {
        k: np.full(len(s.logprobs), value * k.position + k.sample, np.float32) for k, s in experience.samples.items()
    }


def carried(everything):
    """Five completions that dynamic sampling has left over, some on every rank."""
    table = everything.table[3:8].copy()
    table["position"] += 100
    table["owner"] = np.arange(5) % dist.get_world_size()
    scored = {}
    for row in table[table["owner"] == dist.get_rank()]:
        key = Key(int(row["position"]) - 100, int(row["sample"]))
        sample = replace(everything.samples[key], key=Key(key.position + 100, key.sample))
        scored[sample.key] = Scored(sample, f"text {key.sample}", failures={"one": "error: no"})
    return Collected(table, scored)


def assert_same(found, want):
    assert found.table.tobytes() == want.table.tobytes() and found.used == want.used
    assert all(map(np.array_equal, batches_of(found), batches_of(want)))
    assert_same_samples(found.samples, want.samples)
    for name in ("old", "ref", "routing"):
        one, other = getattr(found, name), getattr(want, name)
        assert (one is None) == (other is None), name
        assert one is None or all(np.array_equal(one[key], value) for key, value in other.items()), name


def batches_of(experience):
    return [rows for dealt in experience.steps for mine in dealt for rows in mine]


def assert_same_samples(found, want):
    assert found.keys() == want.keys()
    for key, sample in want.items():
        assert all(np.array_equal(getattr(sample, f.name), getattr(found[key], f.name)) for f in fields(sample)), key


def only_the_first_rank(_):
    raise AssertionError("another rank looked whether a checkpoint is complete")


@contextlib.contextmanager
def counted_reading():
    """Inside, the numbers in every slice of a model folder are counted."""
    from grpo_hpc.models.hf_folder import HfFolder

    real, sizes = HfFolder.slice, []

    class Counted:
        def __init__(self, tensor):
            self.tensor = tensor

        def __getitem__(self, index):
            part = self.tensor[index]
            sizes.append(part.numel())
            return part

    HfFolder.slice = lambda folder, name: Counted(real(folder, name))
    yield sizes
    HfFolder.slice = real


def check_reading(read: int, chunks) -> None:
    """Ranks that hold the same divide the reading of it among them."""
    from megatron.core import parallel_state as mpu

    from grpo_hpc.models.movers import local_parameters

    sharers = {True: mpu.get_expert_data_parallel_world_size(), False: mpu.get_data_parallel_world_size(True)}
    sizes = {name: parameter.numel() for name, parameter in local_parameters(chunks).items()}
    fair = sum(size / sharers[".experts." in name] for name, size in sizes.items())
    assert 0 < read <= fair + 2 * max(sizes.values()), f"{read} numbers were read, {fair} would be fair"


def check_reference(reference, read, resumed) -> None:
    """The copy of a policy is what a second read gives, whatever a checkpoint does to the policy afterwards."""
    import torch

    from grpo_hpc.models.movers import local_parameters

    copied, wanted, moved = (local_parameters(chunks) for chunks in (reference, read, resumed.chunks))
    assert copied.keys() == wanted.keys() == moved.keys()
    for name, value in copied.items():
        assert torch.equal(value, wanted[name]), f"{name} of the reference model"
    assert any(not torch.equal(value, moved[name]) for name, value in copied.items()), "the policy must have moved"


if __name__ == "__main__":
    main()
