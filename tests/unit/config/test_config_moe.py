"""The section ``moe`` of the run file, and what a model refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from grpo_hpc.config import load_run
from grpo_hpc.errors import ConfigError
from grpo_hpc.models.families.read_shape import read_shape
from grpo_hpc.models.shape import require_engine, require_experts
from grpo_hpc.plan.make import make_plan
from tools.bench.random_model import SHAPES

TRAINED = {"rms_norm_eps": 1e-6, "max_position_embeddings": 4096, "rope_theta": 1e6}
CONFIGS = Path(__file__).parents[3] / "configs"


def test_the_engines_routing_needs_a_gpu_and_the_trainers_does_not() -> None:
    with pytest.raises(ConfigError, match=r"R3 needs resources\.device: cuda.*use R2"):
        load_run(CONFIGS / "quickstart.yaml", ["router_replay_mode=R3"])
    assert load_run(CONFIGS / "quickstart.yaml", ["router_replay_mode=R2"]).moe.router_replay_mode == "R2"
    cfg = load_run(CONFIGS / "qwen3_30b_a3b.yaml", ["router_replay_mode=R3", "moe_router_dtype=fp32"])
    assert cfg.moe.chosen() == ["router_replay_mode"]


def test_a_model_without_experts_refuses_them() -> None:
    dense, experts = (read_shape(CONFIGS / "models" / f"{name}.json") for name in ("Qwen3-8B", "Qwen3-30B-A3B"))
    with pytest.raises(ConfigError, match=r"moe\.moe_aux_loss_coeff: qwen3 has no experts"):
        require_experts(dense, ["moe_aux_loss_coeff"])
    require_experts(dense, [])
    require_experts(experts, ["moe_aux_loss_coeff"])


def test_only_a_router_with_a_bias_has_one_that_moves() -> None:
    shape = read_shape(CONFIGS / "models" / "Qwen3-30B-A3B.json")
    assert shape.experts is not None
    with pytest.raises(ConfigError, match=r"moe_router_bias_update_rate: the routers of qwen3_moe have no bias"):
        require_experts(shape, ["moe_router_bias_update_rate"])
    require_experts(replace(shape, experts=replace(shape.experts, bias=True)), ["moe_router_bias_update_rate"])
    with pytest.raises(ConfigError, match=r"bias_update_rate.*cannot be combined with tuner\.tuner_type: lora"):
        load_run(CONFIGS / "quickstart.yaml", ["moe_router_bias_update_rate=0.001", "tuner_type=lora"])


def test_latent_attention_needs_a_gpu_to_sample(tmp_path: Path) -> None:
    """Before anything starts, not at the first weight sync."""
    (tmp_path / "config.json").write_text(json.dumps(SHAPES["latent-3b"] | TRAINED))
    with pytest.raises(ConfigError, match="vLLM's CPU build takes no new weights for the latent attention"):
        make_plan(load_run(CONFIGS / "quickstart.yaml", [f"model.path={tmp_path}", "config=null"]))
    shape = read_shape(tmp_path)
    require_engine(shape, "cuda")
    require_engine(replace(shape, mla=None), "cpu")


def test_what_vllm_would_read_otherwise_must_be_stated(tmp_path: Path) -> None:
    silent = {key: value for key, value in SHAPES["latent-3b"].items() if key != "scoring_func"}
    (tmp_path / "config.json").write_text(json.dumps(silent | TRAINED))
    with pytest.raises(ConfigError, match="leaves out scoring_func: vLLM would compute another model") as caught:
        require_engine(read_shape(tmp_path), "cuda")
    assert 'Add "scoring_func": "sigmoid" to it' in str(caught.value)


@pytest.mark.parametrize(("family", "said"), [("minimax_m2", "for the norms"), ("ernie4_5_moe", "without the bias")])
def test_what_vllm_cannot_sample_on_a_cpu_is_refused_there(family: str, said: str) -> None:
    shape = replace(read_shape(CONFIGS / "models" / "Qwen3-30B-A3B.json"), family=family)
    require_engine(shape, "cuda")
    with pytest.raises(ConfigError, match=said):
        require_engine(shape, "cpu")
