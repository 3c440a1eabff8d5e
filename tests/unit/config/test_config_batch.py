from __future__ import annotations

from math import lcm
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo_hpc.config import RunConfig, nearest
from grpo_hpc.config.batch import Sizes, broken_rules, engine_sequences, refused_by_ms_swift, schedule, sizes_of
from grpo_hpc.config.nearest import batch_problems, nearest_values, suggestions
from grpo_hpc.config.sections import SECTION_OF
from grpo_hpc.errors import ConfigError

NOW = Sizes(
    nodes=1,
    nproc_per_node=2,
    tensor_model_parallel_size=1,
    pipeline_model_parallel_size=1,
    context_parallel_size=1,
    expert_model_parallel_size=1,
    expert_tensor_parallel_size=1,
    micro_batch_size=4,
    global_batch_size=64,
    steps_per_generation=None,
    generation_batch_size=None,
    num_generations=8,
    vllm_mode="colocate",
    vllm_server_nodes=1,
    vllm_tensor_parallel_size=1,
    loss_scaling="exact",
)


def config(sizes: Sizes, train_iters: int = 10) -> RunConfig:
    values: dict[str, dict[str, object]] = {
        "model": {"path": "m"},
        "data": {"train": "t"},
        "rewards": {"reward_funcs": ["r"]},
        "resources": {},
        "parallel": {},
        "rollout": {},
        "batch": {"train_iters": train_iters},
        "algorithm": {},
    }
    given = sizes._asdict()
    if sizes.vllm_mode == "colocate":
        del given["vllm_server_nodes"]
    for key, value in given.items():
        values[SECTION_OF[key]][key] = value
    return RunConfig.model_validate({"name": "x", **values})


def test_the_worked_example_of_dense_colocate() -> None:
    """8 ranks, global 128, 4 steps per rollout: 512 completions of 64 prompts, 64 completions per rank."""
    s = schedule(
        config(NOW._replace(nproc_per_node=8, global_batch_size=128, steps_per_generation=4, micro_batch_size=2))
    )
    assert (s.world_size, s.dp, s.generation_batch_size, s.prompts_per_rollout) == (8, 8, 512, 64)
    assert (s.prompts_per_step, s.accumulation) == (16, 8)
    assert (s.completions_per_rank_per_rollout, s.rollouts) == (64, 3)


@pytest.mark.parametrize(
    ("nodes", "completions", "group", "on_each"),
    [(8, 512, 16, 8), (64, 1024, 8, 2), (16, 512, 16, 4)],
)
def test_a_group_may_lie_on_several_ranks(nodes: int, completions: int, group: int, on_each: int) -> None:
    """The last is DAPO's published recipe: mini-batches of 32 prompts times 16 completions on 128 GPUs."""
    sizes = NOW._replace(
        nodes=nodes, nproc_per_node=8, global_batch_size=completions, num_generations=group, micro_batch_size=2
    )
    s = schedule(config(sizes))
    assert (s.dp, s.global_batch_size // s.dp, s.accumulation) == (8 * nodes, on_each, on_each // 2)
    assert refused_by_ms_swift(sizes)
    assert [rule.numbers for rule in broken_rules(sizes._replace(loss_scaling="ms_swift"))] == [
        rule.numbers for rule in refused_by_ms_swift(sizes)
    ]


def test_either_of_generation_size_and_steps_may_be_given() -> None:
    by_steps = schedule(config(NOW._replace(steps_per_generation=3)))
    by_size = schedule(config(NOW._replace(generation_batch_size=192)))
    both = schedule(config(NOW._replace(steps_per_generation=3, generation_batch_size=192)))
    assert by_steps == by_size == both


def test_servers_of_their_own_sample_for_all() -> None:
    s = schedule(config(NOW._replace(vllm_mode="server", vllm_server_nodes=4, vllm_tensor_parallel_size=2)))
    assert s.completions_per_rank_per_rollout == 64 // 4


@pytest.mark.parametrize(("share", "limit", "wanted"), [(8, None, 64), (96, None, 96), (2048, None, 512), (8, 16, 16)])
def test_an_engine_is_made_for_its_share(share: int, limit: int | None, wanted: int) -> None:
    """Larger batches have no CUDA graph, and an evaluation may be larger than a small share."""
    assert engine_sequences(share, limit) == wanted


def test_an_engine_of_two_ranks_generates_for_both() -> None:
    s = schedule(config(NOW._replace(vllm_tensor_parallel_size=2)))
    assert s.completions_per_rank_per_rollout == 64


@pytest.mark.parametrize(
    ("change", "numbers", "wanted"),
    [
        ({"micro_batch_size": 3}, "64 / (3 * 2) = 64 / 6, remainder 4", "batch.micro_batch_size: 2 or 4 (now 3)"),
        ({"micro_batch_size": 3}, "64 / 6, remainder 4", "batch.global_batch_size: 48 or 72 (now 64)"),
        (
            {"loss_scaling": "ms_swift", "micro_batch_size": 8},
            "64 / 8 / (2 * 8) = 8 / 16, remainder 8",
            "batch.micro_batch_size: 4 (now 8)",
        ),
        (
            {"loss_scaling": "ms_swift", "global_batch_size": 72},
            "72 / 8 / (2 * 4) = 9 / 8, remainder 1",
            "batch.global_batch_size: 64 or 128 (now 72)",
        ),
        ({"num_generations": 7}, "64 / 7, remainder 1", "batch.num_generations: 4 or 8 (now 7)"),
        ({"global_batch_size": 70}, "70 / 8, remainder 6", "batch.global_batch_size: 64 or 72 (now 70)"),
        (
            {"nproc_per_node": 8, "global_batch_size": 256, "expert_model_parallel_size": 3},
            "1 * 8 / (1 * 3 * 1) = 8 / 3, remainder 2",
            "parallel.expert_model_parallel_size: 2 or 4 (now 3)",
        ),
        ({"nproc_per_node": 3}, "64 / 12, remainder 4", "resources.nproc_per_node: 2 or 4 (now 3)"),
        (
            {"tensor_model_parallel_size": 3},
            "1 * 2 / (3 * 1 * 1) = 2 / 3, remainder 2",
            "parallel.tensor_model_parallel_size: 2 (now 3)",
        ),
        ({"generation_batch_size": 100}, "100 / 64, remainder 36", "batch.generation_batch_size: 64 or 128 (now 100)"),
        (
            {"generation_batch_size": 128, "steps_per_generation": 3},
            "64 * 3 = 192, but 128 was given",
            "batch.steps_per_generation: 2 (now 3)",
        ),
        ({"vllm_tensor_parallel_size": 3}, "1 * 2 / 3, remainder 2", "rollout.vllm_tensor_parallel_size: 2 (now 3)"),
    ],
)
def test_a_broken_rule_shows_numbers_and_nearest_values(change: dict[str, int], numbers: str, wanted: str) -> None:
    cfg = config(NOW._replace(**change))
    with pytest.raises(ConfigError) as caught:
        schedule(cfg)
    assert numbers in str(caught.value)
    (problem,) = batch_problems(cfg)
    assert problem.text.startswith(str(caught.value))
    assert wanted in problem.text


def test_engines_may_differ_by_one_completion() -> None:
    """Three engines of one GPU sample 64 completions of a model that all three hold together."""
    s = schedule(config(NOW._replace(nproc_per_node=3, tensor_model_parallel_size=3)))
    assert (s.engines, s.completions_per_rank_per_rollout) == (3, 22)


def test_two_keys_are_proposed_when_one_is_not_enough() -> None:
    sizes = NOW._replace(tensor_model_parallel_size=3, vllm_tensor_parallel_size=5)
    lines = suggestions(sizes, broken_rules(sizes))
    assert lines[0] == "nearest values that fit, changing two keys:"
    assert lines[1].split() == ["resources.nproc_per_node=15", "batch.global_batch_size=80"]
    assert not broken_rules(sizes._replace(nproc_per_node=15, global_batch_size=120))


def test_suggestions_for_large_runs_try_few_values(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[Sizes] = []
    monkeypatch.setattr(nearest, "broken_rules", lambda sizes: tried.append(sizes) or broken_rules(sizes))
    assert batch_problems(config(NOW._replace(nodes=512, nproc_per_node=8, global_batch_size=100_000)))
    assert 0 < len(tried) < 10_000


small = st.integers(1, 6)
any_sizes = st.builds(
    Sizes,
    nodes=st.integers(1, 3),
    nproc_per_node=st.integers(1, 8),
    tensor_model_parallel_size=st.integers(1, 3),
    pipeline_model_parallel_size=st.integers(1, 2),
    context_parallel_size=st.integers(1, 2),
    expert_model_parallel_size=st.integers(1, 3),
    expert_tensor_parallel_size=st.integers(1, 2),
    micro_batch_size=small,
    global_batch_size=st.integers(1, 200),
    steps_per_generation=st.none() | small,
    generation_batch_size=st.none() | st.integers(1, 400),
    num_generations=st.integers(2, 9),
    vllm_mode=st.sampled_from(["colocate", "server"]),
    vllm_server_nodes=st.integers(1, 3),
    vllm_tensor_parallel_size=st.integers(1, 3),
    loss_scaling=st.sampled_from(["exact", "ms_swift"]),
).map(lambda s: s if s.vllm_mode == "server" else s._replace(vllm_server_nodes=1))
fitting_sizes = st.builds(
    lambda tp, pp, dp, micro, group, k, steps: NOW._replace(
        nproc_per_node=tp * pp * dp,
        tensor_model_parallel_size=tp,
        pipeline_model_parallel_size=pp,
        micro_batch_size=micro,
        num_generations=group,
        global_batch_size=lcm(group, dp * micro * tp * pp) * k,
        steps_per_generation=steps,
    ),
    tp=small, pp=small, dp=small, micro=small, group=st.integers(2, 9), k=small, steps=small,
)  # fmt: skip


@given(fitting_sizes, st.integers(1, 50))
def test_a_schedule_that_fits_satisfies_every_equation(sizes: Sizes, train_iters: int) -> None:
    s = schedule(config(sizes, train_iters))
    assert s.world_size == s.dp * sizes.tensor_model_parallel_size * sizes.pipeline_model_parallel_size
    assert s.global_batch_size == s.micro_batch_size * s.dp * s.accumulation
    assert s.generation_batch_size == s.global_batch_size * s.steps_per_generation
    assert s.prompts_per_rollout * s.num_generations == s.generation_batch_size
    assert s.prompts_per_step * s.num_generations == s.global_batch_size
    assert 0 <= s.completions_per_rank_per_rollout * s.engines - s.generation_batch_size < s.engines
    assert (s.rollouts - 1) * s.steps_per_generation < train_iters <= s.rollouts * s.steps_per_generation


@given(any_sizes)
def test_suggestions_are_valid_and_nearest(sizes: Sizes) -> None:
    assert sizes_of(config(sizes)) == sizes
    broken = broken_rules(sizes)
    if not broken:
        schedule(config(sizes))
        return
    for key in ("micro_batch_size", "num_generations", "global_batch_size"):
        now = getattr(sizes, key)
        lowest = 2 if key == "num_generations" else 1
        fits = [v for v in range(lowest, 600) if v != now and not broken_rules(sizes._replace(**{key: v}))]
        below, above = [v for v in fits if v < now][-1:], [v for v in fits if v > now][:1]
        if key == "global_batch_size":
            found = [v for v in nearest_values(sizes, key) if v < 600]
            assert found == below + above
        else:
            assert nearest_values(sizes, key) == below + above


def test_the_shipped_run_files_fit() -> None:
    from grpo_hpc.config import load_run

    root = Path(__file__).parents[3]
    files = sorted((root / "configs").rglob("*.yaml"))
    assert files
    for file in files:
        schedule(load_run(file))
