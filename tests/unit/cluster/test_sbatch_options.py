"""GRES and options of sbatch are read in one place, whoever wrote them: lines of real sites and of real scripts."""

from __future__ import annotations

import pytest

from grpo_hpc.cluster.detect import partitions
from grpo_hpc.cluster.sbatch_options import Asked, asked, gpus, read_options, script_lines, split_words
from grpo_hpc.errors import ConfigError


@pytest.mark.parametrize(
    ("gres", "found"),
    [
        ("gpu:2080ti:4", {"2080ti": 4}),
        ("gpu:3090:8(S:0-1)", {"3090": 8}),
        ("gpu:nvidia_a100-sxm4-80gb:4(S:0-3)", {"nvidia_a100-sxm4-80gb": 4}),
        ("gpu:1g.10gb:7(S:0),gpu:a100:2(S:0,1)", {"1g.10gb": 7, "a100": 2}),
        ("gpu:a100:2(S:0),gpu:a100:2(S:1)", {"a100": 4}),
        ("gpu:4,tmpfs:200G", {None: 4}),
        ("craynetwork:4,gpu:a100:no_consume:4(IDX:0-3)", {"a100": 4}),
        ("gres:gpu:h100:8,shard:h100:32", {"h100": 8}),
        ("cpu=64,mem=500G,gres/gpu:gh200=4", {"gh200": 4}),
        ("gpu", {None: 1}),
        ("gpu:v100", {"v100": 1}),
        ("(null)", {}),
        ("", {}),
    ],
)
def test_gpus_of_generic_resources(gres: str, found: dict[str | None, int]) -> None:
    assert gpus(gres) == found


def test_a_type_that_begins_with_a_digit_is_a_type() -> None:
    shown = "a|up|infinite|9|gpu:2080ti:4|32\nb|up|infinite|9|gpu:3090:8(S:0-1)|64+"
    assert [(found.gpu_type, found.gpus) for found in partitions(shown)] == [("2080ti", 4), ("3090", 8)]


@pytest.mark.parametrize(
    ("line", "nodes", "of_node"),
    [
        ("--nodes=2 --gpus-per-node=8", 2, 8),
        ("-N2", 2, None),
        ("-N 2 --gres=gpu:4", 2, 4),
        ("-N 2-4 --gres gpu:4,tmpfs:200G   # four would do", 2, 4),
        ("--gres=gpu:nvidia_a100-sxm4-80gb:4", None, 4),
        ("--gpus-per-node a100:4", None, 4),
        ("--gpus-per-node=2080ti:4", None, 4),
        ("--nodes=2 --ntasks-per-node=8 --gpus-per-task=1", 2, 8),
        ("-N 2 -n 8 --gpus-per-task=h100:2", 2, 8),
        ("-N 2 --ntasks-per-node=4 --tres-per-task=cpu:8,gres/gpu:1", 2, 4),
        ("-N4 -G 32", 4, 8),
        ("--tres-per-node=gres/gpu:3090:8", None, 8),
        ("--exclusive -N 3 --requeue", 3, None),
        ("--job-name='a # b' --nodes=5", 5, None),
        ("--nodes=2 --nodes=3", 3, None),
    ],
)
def test_what_a_job_asks_for(line: str, nodes: int | None, of_node: int | None) -> None:
    assert asked(read_options(split_words(line))) == Asked(nodes, of_node)


def test_lines_of_a_script_count_until_its_first_command() -> None:
    script = "#!/bin/bash\n#SBATCH -N 2 # two\n##SBATCH -N 9\n\n#SBATCH --gres=gpu:4\nset -e\n#SBATCH --nodes=7\n"
    lines, unread = script_lines(script)
    assert read_options(split_words(lines)) == {"nodes": "2", "gres": "gpu:4"}
    assert unread == [7]
    with pytest.raises(ConfigError, match="never closed"):
        split_words("--comment='open")
