"""An adapter whose configuration has another form is refused; none is merged with a factor that is no number."""

from __future__ import annotations

import json

import pytest

from grpo_hpc.checkpoint.folders import open_folder
from grpo_hpc.checkpoint.peft_adapters import CONFIG, PREFIX, WEIGHTS, plan_merge, read_adapter
from grpo_hpc.errors import CheckpointError
from grpo_hpc.models.on_disk.safetensors_file import plan_file

GOOD = {
    "peft_type": "LORA",
    "r": 4,
    "lora_alpha": 8,
    "rank_pattern": {},
    "alpha_pattern": {},
    "target_parameters": None,
}
ODD = [True, -1, 1.5, float("nan"), float("inf"), 10**400, "x", "(", [1], [None], {"q_proj": "x"}, {"(": 1}]
ODD += [{"q_proj": None}, {"q_proj": [1]}, {"q_proj": float("nan")}, {"a": {}}, {"q_proj": -1}]
RIGHT = {("r", "4"), ("lora_alpha", "1.5")}


@pytest.fixture
def adapter(tmp_path):
    folder, module = tmp_path / "adapter", PREFIX + "model.layers.0.self_attn.q_proj"
    folder.mkdir()
    pair = [(f"{module}.lora_A.weight", "float32", (4, 16)), (f"{module}.lora_B.weight", "float32", (16, 4))]
    header, places = plan_file(pair)
    with (folder / WEIGHTS).open("wb") as file:
        file.write(header)
        file.truncate(places[-1].offset + places[-1].nbytes)
    (folder / CONFIG).write_text(json.dumps(GOOD))
    return folder


def test_the_whole_one_is_merged(adapter, model):
    assert plan_merge(open_folder(model), read_adapter(adapter)).jobs


@pytest.mark.parametrize("key", GOOD)
def test_a_setting_of_another_form(key, adapter, model):
    base = open_folder(model)
    for value in ODD:
        (adapter / CONFIG).write_text(json.dumps(GOOD | {key: value}))
        if (key, repr(value)) in RIGHT or (key == "target_parameters" and value == []):
            plan_merge(base, read_adapter(adapter))
        else:
            with pytest.raises(CheckpointError):
                plan_merge(base, read_adapter(adapter))


@pytest.mark.parametrize("text", ["", "[]", "7", "{", "[" * 100_000])
def test_a_configuration_that_is_none(text, adapter):
    (adapter / CONFIG).write_text(text)
    with pytest.raises(CheckpointError, match=r"cannot be read|adapter, not LORA"):
        read_adapter(adapter)
