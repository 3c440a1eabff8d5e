"""Shapes of published models, read without torch; tests/cpu proves the same numbers against transformers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo_hpc.errors import CheckpointError
from grpo_hpc.models.families import weight_map
from grpo_hpc.models.families.counting import count_active, count_by_part, count_layer, count_parameters
from grpo_hpc.models.families.read_shape import read_shape, shape_of
from grpo_hpc.models.layouts import Copy, Fused, GateUp, Qkv, Row, Rows, Shard, SplitColumns, Vocabulary
from grpo_hpc.models.weight_map import entries

PUBLISHED = json.loads((Path(__file__).parent / "published.json").read_text())
# all parameters, and those that serve one token
COUNTS = {
    "Llama-3.1-8B": (8_030_261_248, 8_030_261_248),
    "Llama-3.2-1B": (1_235_814_400, 1_235_814_400),
    "Mistral-7B-v0.1": (7_241_732_096, 7_241_732_096),
    "Mistral-Nemo": (12_247_782_400, 12_247_782_400),
    "Qwen2.5-0.5B": (494_032_768, 494_032_768),
    "Qwen2.5-7B": (7_615_616_512, 7_615_616_512),
    "Qwen3-8B": (8_190_735_360, 8_190_735_360),
    "Qwen3-30B-A3B": (30_532_122_624, 3_353_032_704),
    "Mixtral-8x7B": (46_702_792_704, 12_879_925_248),
    "DeepSeek-V3": (671_026_404_352, 37_552_282_624),
    "OLMoE-1B-7B": (6_919_161_856, 1_282_017_280),
    "Qwen2.5-VL-3B": (3_754_622_976, 3_754_622_976),
    "Qwen2.5-VL-7B": (8_292_166_656, 8_292_166_656),
    "Qwen3-VL-8B": (8_767_123_696, 8_767_123_696),
    "Seed-OSS-36B": (36_151_104_512, 36_151_104_512),
    "SmolLM3-3B": (3_075_098_624, 3_075_098_624),
    "Phi-4": (14_659_507_200, 14_659_507_200),
    "Phi-4-mini": (3_836_021_760, 3_836_021_760),
    "ERNIE-4.5-0.3B": (360_748_032, 360_748_032),
    "Devstral-2-123B": (125_025_988_608, 125_025_988_608),
    "GLM-4-9B-0414": (9_400_279_040, 9_400_279_040),
    "OLMo-2-7B": (7_298_617_344, 7_298_617_344),
    "Granite-3.3-8B": (8_170_864_640, 8_170_864_640),
    "Qwen1.5-MoE-A2.7B": (14_315_784_192, 2_689_173_504),
    "DeepSeek-V2-Lite": (15_706_484_224, 2_661_150_208),
    "Moonlight-16B-A3B": (15_960_108_544, 2_914_774_528),
    "Kimi-K2": (1_026_408_209_408, 32_861_477_888),
    "GLM-4.5-Air": (106_852_245_504, 13_424_123_904),
    "GLM-4.7-Flash": (29_943_390_976, 3_896_763_136),
    "MiniMax-M2": (228_689_748_992, 11_030_537_216),
    "Hy3": (295_033_528_320, 20_675_715_072),
    "ERNIE-4.5-21B-A3B": (21_825_436_160, 3_352_148_480),
}


@pytest.mark.parametrize("name", COUNTS)
def test_parameters_of_published_models(name):
    shape = shape_of(PUBLISHED[name])
    assert (count_parameters(shape), count_active(shape)) == COUNTS[name]


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize("layer_spec", ["local", "transformer_engine"])
def test_every_tensor_has_one_place(name, layer_spec):
    config = PUBLISHED[name]
    text = config.get("text_config", config)
    layers = text["num_hidden_layers"]
    text = {k: v[:4] if isinstance(v, list) and len(v) == layers else v for k, v in text.items()}
    text = text | {"num_hidden_layers": 4} | ({"n_routed_experts": 16} if "n_routed_experts" in text else {})
    shape = shape_of(config | ({"text_config": text} if "text_config" in config else text))
    table = entries(weight_map(shape), layer_spec)
    names = [entry.name for entry in table]
    assert len(names) == len(set(names)) and not any("{" in name for name in names)
    sources = [name for entry in table if entry.exported for name in entry.hf_names]
    assert len(sources) == len(set(sources)) and not any("{" in name for name in sources)
    counted = sum(e.rule.parameters for e in table)
    assert counted == count_parameters(shape), "the table and the counts are the same rows"


def test_a_layer_of_each_kind():
    shape = shape_of(PUBLISHED["DeepSeek-V3"])
    count = count_by_part(shape)
    assert (len(shape.dense_layers), len(shape.moe_layers)) == (3, 58)
    assert count.expert == count.shared_expert == 3 * 7168 * 2048 and count.router == 256 * 7168
    assert count_layer(shape, 0) == count.attention + count.norms + 3 * 7168 * 18432
    assert count_layer(shape, 3) == count.attention + count.norms + count.router + 257 * count.expert


def test_no_torch_is_imported():
    code = "import sys, grpo_hpc.models.families as f; f.family('deepseek_v3'); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"model_type": "gpt2"}, "model_type 'gpt2' is not supported"),
        ({"model_type": ["llama"]}, "model_type is .*, not a name"),
        ({"rope_scaling": {"rope_type": ["yarn"]}}, "rope_type is .*, not a word"),
        ({"rope_scaling": {"rope_type": "yarn"}}, "'factor' is missing"),
        ({"rope_parameters": {"partial_rotary_factor": 0.05}}, "3 of 64 dimensions of a head cannot be rotated"),
        (
            {"rope_scaling": {"rope_type": "longrope", "short_factor": [1.0] * 32, "long_factor": [1.0] * 31}},
            "long_factor has 31 numbers for 64 rotated dimensions, not 32",
        ),
        ({"attention_bias": True}, "attention_bias: True is not supported"),
        ({"quantization_config": {"quant_method": "fp8"}}, r"quantization_config: the weights are quantised \(fp8\)"),
        ({"text_config": {"quantization_config": {"bits": 4}}}, "the weights are quantised, which cannot be trained"),
        ({"compression_config": {}}, "compression_config: the weights are quantised"),
        ({"hidden_size": None}, "'hidden_size' is missing or null"),
        ({"rope_scaling": {"type": "proportional"}}, "rotary scaling 'proportional'"),
    ],
)
def test_what_a_family_cannot_do_is_refused(changed, said):
    with pytest.raises(CheckpointError, match=said):
        shape_of(PUBLISHED["Llama-3.2-1B"] | changed)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("num_experts", {}, "num_experts is {}, not a whole number from 1 to 8192"),
        ("num_experts", "128", "num_experts is '128', not a whole number"),
        ("num_experts", True, "num_experts is True, not a whole number"),
        ("num_experts_per_tok", 129, "129 experts for a token cannot be chosen from 128"),
        ("moe_intermediate_size", 768.0, "moe_intermediate_size is 768.0, not a whole number"),
        ("num_hidden_layers", 10**7, "num_hidden_layers is 10000000, not a whole number from 1 to 1024"),
        ("vocab_size", 10**310, r"vocab_size is 1000+\.\.\., not a whole number"),
        ("mlp_only_layers", "1", "mlp_only_layers is '1', not a list of whole numbers"),
        ("decoder_sparse_step", 0, "decoder_sparse_step is 0, not a whole number from 1"),
        ("norm_topk_prob", "no", "norm_topk_prob is 'no', not true or false"),
        ("rms_norm_eps", float("nan"), "rms_norm_eps is nan, not a positive number"),
        ("rope_scaling", [], r"rope_scaling is \[\], not an object with keys"),
    ],
)
def test_values_of_another_kind_are_refused(key, value, said):
    with pytest.raises(CheckpointError, match=said):
        shape_of(PUBLISHED["Qwen3-30B-A3B"] | {key: value})


@pytest.mark.parametrize(("changed"), [{"n_group": 256, "topk_group": 128}, {"n_group": 128, "topk_group": 3}])
def test_a_choice_within_groups_that_are_too_small_is_refused(changed):
    with pytest.raises(CheckpointError, match="8 experts for a token cannot be chosen from"):
        shape_of(PUBLISHED["DeepSeek-V3"] | changed)


def test_parts_are_checked_too():
    config = PUBLISHED["Qwen3-VL-8B"]
    with pytest.raises(CheckpointError, match="depth is -1, not a whole number from 1 to 1024"):
        shape_of(config | {"vision_config": config["vision_config"] | {"depth": -1}})


def test_null_says_what_an_absent_key_says():
    config = PUBLISHED["Qwen3-30B-A3B"]
    shorter = {key: value for key, value in config.items() if key != "decoder_sparse_step"}
    assert shape_of(config | {"decoder_sparse_step": None}) == shape_of(shorter)


@pytest.mark.parametrize("content", [b"[" * 5000, b"\xff", b'{"vocab_size": ' + b"9" * 5000 + b"}", b"3"])
def test_what_is_no_configuration_is_refused(content, tmp_path):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"cannot be read as JSON|not a model configuration"):
        read_shape(tmp_path)


def test_a_missing_size_is_named():
    config = {key: value for key, value in PUBLISHED["Qwen3-8B"].items() if key != "intermediate_size"}
    with pytest.raises(CheckpointError, match="'intermediate_size' is missing"):
        shape_of(config)


def test_a_sliding_window_bounds_the_sequence():
    assert shape_of(PUBLISHED["Mistral-7B-v0.1"]).max_position == 4096
    assert shape_of(PUBLISHED["Qwen2.5-7B"]).max_position == 131072, "its window is switched off"


sizes = st.integers(1, 6)
layouts = st.one_of(
    st.builds(lambda r, c: Copy((r, c)), sizes, sizes),
    st.builds(lambda r, c: SplitColumns((r, 4 * c)), sizes, sizes),
    st.builds(lambda r, c: Vocabulary((r, c)), st.integers(1, 40), sizes),
    st.builds(lambda w, h: GateUp(4 * w, h), sizes, sizes),
    st.builds(lambda k, g, d, h: Qkv(k * g, k, 4 * d, h), sizes, sizes, sizes, st.sampled_from([(), (3,)])),
    st.builds(lambda w, h: Fused(GateUp(4 * w, h)), sizes, sizes),
    st.builds(lambda k, g, d: Fused(Qkv(k * g, k, 4 * d, (3,))), sizes, sizes, sizes),
    st.builds(lambda n: Row((n,)), sizes),
)


@given(layouts, st.sampled_from([1, 2, 4]))
def test_row_lists_and_boxes_cover_everything_once(layout, ranks):
    """Each row of each tensor has one place, and the ranks' boxes share the parameter without rest or overlap."""
    rows, *columns = layout.shape(ranks)
    placed: list[tuple[int | None, int]] = []
    for piece in layout.rows(0, rows):
        placed += [(piece.source, row) for row in range(piece.start, piece.stop)]
    wanted = {(source, row) for source, shape in enumerate(layout.views) for row in range(shape[0])}
    assert len(placed) == rows and {place for place in placed if place[0] is not None} == wanted
    for source in range(len(layout.hf_shapes)):
        again = [placed[row] for part in layout.rows_of(source) for row in range(part.start, part.stop)]
        assert again == [(source, row) for row in range(layout.views[source][0])]
    if layout.sharded:
        cells = [
            (row, column)
            for rank in range(ranks)
            for box in layout.boxes(Shard(rank, ranks))
            for row in range(box[0].start, box[0].stop)
            for column in (range(box[1].start, box[1].stop) if columns else [0])
        ]
        assert sorted(cells) == [(r, c) for r in range(rows) for c in range(columns[0] if columns else 1)]


def test_query_key_value_are_interleaved_by_group():
    assert Qkv(4, 2, 1, ()).segments() == [
        Rows(0, 0, 2),
        Rows(1, 0, 1),
        Rows(2, 0, 1),
        Rows(0, 2, 4),
        Rows(1, 1, 2),
        Rows(2, 1, 2),
    ]
