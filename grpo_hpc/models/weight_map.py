"""The weight map: one row per Megatron parameter, read by every mover of weights and by the parameter counts.

A family describes itself as a list of :class:`Rule` rows (see :mod:`grpo_hpc.models.families`). Offline conversion,
load at start, sync to vLLM, export and LoRA merging read the same rows; so does the planner, which counts parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from grpo_hpc.models.layouts import Copy, Layout, elements

LAYER, EXPERT = "{i}", "{e}"

Part = Literal["embedding", "output", "attention", "mlp", "router", "expert", "shared_expert", "norm", "vision"]

# How Megatron's local layer spec renames norms when it saves, so that checkpoints look like TransformerEngine's.
_SAVED_AS = {
    "input_layernorm.": "self_attention.linear_qkv.layer_norm_",
    "pre_mlp_layernorm.": "mlp.linear_fc1.layer_norm_",
}


@dataclass(frozen=True)
class Rule:
    """One row of a weight map.

    Attributes:
        megatron: parameter name in the local layer spec; ``{i}`` is the global layer number from 0 and ``{e}`` the
            global number of the expert.
        hf: names of the Hugging Face tensors.
        layout: how they correspond.
        part: what the parameter belongs to.
        te: parameter name in the TransformerEngine layer spec, where it differs.
        te_whole: with TransformerEngine every tensor-parallel rank holds all of it, whatever the layout says.
        layers: the layers that have this parameter; empty for parameters outside of layers.
        experts: number of experts that have one each; 0 for parameters that are no expert's.
        repeats: the parameter is another one's (the tied output matrix on the last pipeline stage): it is loaded from
            the same tensors but never exported or counted.
        buffer: state that is not trained; ``transformers`` does not count it.
    """

    megatron: str
    hf: tuple[str, ...]
    layout: Layout
    part: Part
    te: str | None = None
    layers: tuple[int, ...] = ()
    experts: int = 0
    repeats: bool = False
    buffer: bool = False
    te_whole: bool = False

    @property
    def per_layer(self) -> bool:
        return LAYER in self.megatron

    @property
    def parameters(self) -> int:
        """Parameters of one layer (and one expert)."""
        return 0 if self.repeats or self.buffer else elements(self.layout.hf_shapes)

    def name(self, layer_spec: str) -> str:
        """The parameter's name in a layer spec, with its placeholders."""
        return self.te if self.te and layer_spec == "transformer_engine" else self.megatron

    def saved_names(self, latent_attention: bool) -> tuple[str, ...]:
        """Names in Megatron's distributed checkpoints, with ``{i}`` but without the expert: TransformerEngine's first.

        Experts are one tensor there. The two layer specs agree but for a few norms: those get both names.

        Args:
            latent_attention: the model has multi-head latent attention; then the local spec renames nothing.
        """
        if self.experts:
            return (self.megatron.replace("mlp.experts.local_experts.{e}.", "mlp.experts.experts."),)
        local = self.megatron
        for name, saved in () if latent_attention or self.part != "norm" else _SAVED_AS.items():
            local = local.replace(name, saved)
        return tuple(dict.fromkeys((self.te or self.megatron, local)))


@dataclass(frozen=True)
class Entry:
    """A rule applied to one layer and one expert (or to the model)."""

    name: str
    hf_names: tuple[str, ...]
    layout: Layout
    rule: Rule
    layer: int
    expert: int

    @property
    def exported(self) -> bool:
        return not self.rule.repeats


def entries(rules: Sequence[Rule], layer_spec: str) -> list[Entry]:
    """Every parameter of the whole model: the embedding, layer by layer, what stands behind the layers."""
    layers = 1 + max((max(rule.layers, default=-1) for rule in rules if rule.part != "vision"), default=-1)
    found: list[Entry] = []
    for rule in rules:
        if rule.part == "vision":
            found += [_entry(rule, i, 0, layer_spec) for i in (rule.layers or (0,))]
    found += [_entry(rule, 0, 0, layer_spec) for rule in rules if rule.part == "embedding"]
    for layer in range(layers):
        for rule in rules:
            if rule.part != "vision" and layer in rule.layers:
                found += [_entry(rule, layer, expert, layer_spec) for expert in range(rule.experts or 1)]
    outside = [rule for rule in rules if not rule.per_layer and rule.part not in ("vision", "embedding")]
    return found + [_entry(rule, 0, 0, layer_spec) for rule in outside]


def fused_experts(hf_names: Sequence[str]) -> tuple[str, str]:
    """Where ``transformers`` keeps matrices of an expert: the module, and its parameter of all experts of the layer.

    Args:
        hf_names: gate and up of an expert, which are one parameter there, or its down.
    """
    module = hf_names[0].partition(".experts.")[0].replace("block_sparse_moe", "mlp")
    return f"{module}.experts", "gate_up_proj" if len(hf_names) == 2 else "down_proj"


def _entry(rule: Rule, layer: int, expert: int, layer_spec: str) -> Entry:
    def fill(name: str) -> str:
        return name.replace(LAYER, str(layer)).replace(EXPERT, str(expert))

    whole = rule.te_whole and layer_spec == "transformer_engine"
    layout = Copy(rule.layout.shape()) if whole else rule.layout
    return Entry(fill(rule.name(layer_spec)), tuple(fill(name) for name in rule.hf), layout, rule, layer, expert)
