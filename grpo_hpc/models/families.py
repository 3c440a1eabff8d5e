"""The weight maps of the supported model families.

Llama, Qwen2 and Qwen3 (dense) are one architecture with three switches: bias on the query/key/value projection
(Qwen2), norm on queries and keys (Qwen3), tied embeddings (small models).
"""

from __future__ import annotations

from grpo_hpc.models.shape import ModelShape
from grpo_hpc.models.weight_map import Columns, Copy, GateUp, Qkv, Rule, Vocabulary


def weight_map(shape: ModelShape) -> list[Rule]:
    """The rules of ``shape``'s family; every parameter of the Megatron model is named exactly once."""
    hf, mg = "model.layers.{i}.", "decoder.layers.{i}."
    qkv = Qkv(shape.heads, shape.kv_heads, shape.head_dim)
    attention_in = tuple(f"{hf}self_attn.{x}_proj" for x in "qkv")

    rules = [
        Rule("embedding.word_embeddings.weight", ("model.embed_tokens.weight",), Vocabulary(shape.vocab)),
        Rule(
            f"{mg}input_layernorm.weight",
            (f"{hf}input_layernorm.weight",),
            Copy(),
            te=f"{mg}self_attention.linear_qkv.layer_norm_weight",
        ),
        Rule(f"{mg}self_attention.linear_qkv.weight", tuple(f"{n}.weight" for n in attention_in), qkv),
        Rule(
            f"{mg}self_attention.linear_proj.weight",
            (f"{hf}self_attn.o_proj.weight",),
            Columns(shape.heads * shape.head_dim),
        ),
        Rule(
            f"{mg}pre_mlp_layernorm.weight",
            (f"{hf}post_attention_layernorm.weight",),
            Copy(),
            te=f"{mg}mlp.linear_fc1.layer_norm_weight",
        ),
        Rule(
            f"{mg}mlp.linear_fc1.weight",
            (f"{hf}mlp.gate_proj.weight", f"{hf}mlp.up_proj.weight"),
            GateUp(shape.ffn),
        ),
        Rule(f"{mg}mlp.linear_fc2.weight", (f"{hf}mlp.down_proj.weight",), Columns(shape.ffn)),
        Rule("decoder.final_layernorm.weight", ("model.norm.weight",), Copy()),
    ]
    if shape.qkv_bias:
        rules.append(Rule(f"{mg}self_attention.linear_qkv.bias", tuple(f"{n}.bias" for n in attention_in), qkv))
    if shape.qk_norm:
        rules += [
            Rule(f"{mg}self_attention.{x}_layernorm.weight", (f"{hf}self_attn.{x}_norm.weight",), Copy()) for x in "qk"
        ]
    output = "model.embed_tokens.weight" if shape.tied else "lm_head.weight"
    rules.append(Rule("output_layer.weight", (output,), Vocabulary(shape.vocab), exported=not shape.tied))
    return rules
