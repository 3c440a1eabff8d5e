"""Which layers get adapters: names of either side, whole matrices only, and none that a model lacks."""

from __future__ import annotations

from pathlib import Path

import pytest

from grpo_hpc.config.adapters import named_linears, target_linears
from grpo_hpc.errors import ConfigError
from grpo_hpc.models.families.counting import linears, require_linears
from grpo_hpc.models.families.read_shape import read_shape

MODELS = Path(__file__).parents[3] / "configs" / "models"


def test_names_of_either_side_mean_the_same_matrix() -> None:
    assert target_linears(["q_proj", "v_proj", "k_proj", "o_proj"]) == {"linear_qkv", "linear_proj"}
    assert target_linears(["linear_qkv", "k_proj"]) == {"linear_qkv"}
    assert target_linears(["q_a_proj", "kv_b_proj"]) == {"linear_q_down_proj", "linear_kv_up_proj"}


@pytest.mark.parametrize(
    ("targets", "said"),
    [
        (["q_proj", "o_proj"], "q_proj without k_proj, v_proj"),
        (["up_proj"], "up_proj without gate_proj"),
        (["qkv"], "unknown qkv; there is all-linear"),
    ],
)
def test_parts_of_a_matrix_and_unknown_names_are_refused(targets: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        target_linears(targets)


def test_a_model_must_have_what_is_named() -> None:
    shape = read_shape(MODELS / "Qwen3-8B.json")
    assert linears(shape) == {"linear_qkv", "linear_proj", "linear_fc1", "linear_fc2"}
    require_linears(shape, named_linears(["all-linear"]))
    require_linears(shape, named_linears(["linear_qkv", "down_proj"]))
    with pytest.raises(ConfigError, match="target_modules: qwen3 has no linear_kv_up_proj") as error:
        require_linears(shape, named_linears(["kv_b_proj", "o_proj"]))
    assert "linear_fc1, linear_fc2, linear_proj, linear_qkv" in error.value.hint
