"""What is said of a model of an unknown family."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from grpo_hpc.errors import CheckpointError
from grpo_hpc.models.families import FAMILIES, family
from grpo_hpc.models.families.read_shape import shape_of
from grpo_hpc.models.families.relatives import nearest
from grpo_hpc.models.weight_map import entries

PUBLISHED = json.loads((Path(__file__).parent / "published.json").read_text())


def tensors_of(config):
    table = entries(family(config["model_type"]).rules(shape_of(config)), "local")
    return {n: size for e in table for n, size in zip(e.hf_names, e.layout.hf_shapes, strict=True)}


@pytest.mark.parametrize("name", ["Qwen3-8B", "Phi-4", "OLMoE-1B-7B", "Moonlight-16B-A3B", "ERNIE-4.5-21B-A3B"])
def test_a_family_under_another_name_is_recognised(name):
    config = PUBLISHED[name]
    found = nearest(config | {"model_type": "new"}, tensors_of(config))
    assert (found.family, found.share) == (config["model_type"], 1.0)
    assert not (found.refused or found.unknown or found.missing or found.sizes or found.unread)


def test_what_differs_is_named():
    config = PUBLISHED["Qwen3-8B"] | {"model_type": "new", "hidden_act": "gelu", "logit_scale": 0.1}
    tensors = tensors_of(PUBLISHED["Qwen3-8B"]) | {
        "model.layers.0.extra.weight": (3,),
        "model.layers.1.extra.weight": (3,),
        "model.norm.weight": (7,),
    }
    del tensors["lm_head.weight"]
    found = nearest(config, tensors)
    assert found.family == "qwen3" and 0.7 < found.share < 0.9
    assert found.refused == ("hidden_act: 'gelu' is not supported (only 'silu')",)
    assert found.unread == ("logit_scale",)
    assert (found.unknown, found.missing) == (("model.layers.*.extra.weight",), ("lm_head.weight",))
    assert found.sizes == (("model.norm.weight", (7,), (4096,)),)


@pytest.mark.parametrize("config", [{}, {"hidden_size": []}, {"rope_scaling": {"type": "yarn", "factor": "x"}}])
def test_nothing_that_can_be_read_has_no_relative(config):
    assert nearest(config, {"a": (1,)}) is None


@pytest.mark.parametrize(("name", "known"), [("mimo", "qwen2"), ("internlm3", "llama")])
def test_a_family_that_is_another_says_which(name, known):
    assert known in FAMILIES and name not in FAMILIES
    with pytest.raises(CheckpointError, match=f"the model is one of {known}") as error:
        shape_of({"model_type": name})
    assert f'write "model_type": "{known}"' in error.value.hint


def test_the_page_about_adding_one_quotes_a_real_file():
    root = Path(__file__).parents[3]
    page = (root / "docs" / "adding_a_family.md").read_text().partition("seed_oss.py\n")[2].partition("```")[0]
    quoted = "".join(line.removeprefix("+") + "\n" for line in page.splitlines())
    assert quoted == (root / "grpo_hpc" / "models" / "families" / "dense" / "seed_oss.py").read_text()
