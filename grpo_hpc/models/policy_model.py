"""The policy: Megatron-Core's GPT model, built from a model shape, whose output is token log-probabilities.

Shapes: T tokens of one packed micro-batch, N of them scored, H hidden size.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core import parallel_state as mpu
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_decoder_block_spec
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.moe.moe_layer import MoESubmodules
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.torch_norm import WrappedTorchNorm
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_config import MLATransformerConfig, TransformerConfig
from torch import Tensor

from grpo_hpc.errors import ConfigError
from grpo_hpc.models.attention import PackedSdpaAttention, with_norms
from grpo_hpc.models.families import family
from grpo_hpc.models.grouped import GroupedExperts
from grpo_hpc.models.head import Scoring
from grpo_hpc.models.layouts import padded_vocabulary
from grpo_hpc.models.micro_batch_context import MicroBatchContext, entered
from grpo_hpc.models.norm import RmsNorm, ScaledResidual, TokenNorm
from grpo_hpc.models.patches import patch_model
from grpo_hpc.models.rotary import frequencies, rotary_options, stretch_rotated
from grpo_hpc.models.routing import NO_BALANCE, Balance, PolicyRouter, share_routing_state
from grpo_hpc.models.shape import ModelShape


def transformer_config(shape: ModelShape, dtype: torch.dtype, options: Mapping[str, Any]) -> TransformerConfig:
    """Megatron's configuration of ``shape`` under the current parallel state.

    Args:
        dtype: training precision of parameters and activations.
        options: what follows from the device (``Platform.transformer_options``) and from how the run saves memory.

    Raises:
        ConfigError: experts under tensor parallelism without sequence parallelism, or a version of Megatron-Core that
            would compute another model.
    """
    pipeline = mpu.get_pipeline_model_parallel_world_size()
    chunks = mpu.get_virtual_pipeline_model_parallel_world_size()
    if shape.experts and mpu.get_tensor_model_parallel_world_size() > 1 and not options.get("sequence_parallel"):
        raise ConfigError(
            "a model with experts under tensor parallelism needs parallel.sequence_parallel: true: "
            "else every rank would send all tokens to the experts"
        )
    if shape.mla and shape.mla.q_rank is None and find_spec("megatron.core.transformer.mla_qk_norm_config"):
        raise ConfigError(
            f"megatron-core {version('megatron-core')} puts a norm before queries that are not compressed, which a "
            f"{shape.family} without q_lora_rank does not have",
            "Take megatron-core 0.16.1.",
        )
    make = MLATransformerConfig if shape.mla else TransformerConfig
    fields: dict[str, Any] = {
        "num_layers": shape.layers,
        "hidden_size": shape.hidden,
        "num_attention_heads": shape.heads,
        "num_query_groups": shape.kv_heads,
        "kv_channels": shape.head_dim,
        "ffn_hidden_size": shape.ffn,
        "gated_linear_unit": True,
        "activation_func": F.silu,
        "normalization": "RMSNorm",
        "layernorm_epsilon": shape.norm_eps,
        "qk_layernorm": shape.qk_norm in ("head", "token"),
        "softmax_scale": shape.softmax_scale,
        "add_bias_linear": False,
        "add_qkv_bias": shape.qkv_bias,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        "bf16": dtype == torch.bfloat16,
        "params_dtype": dtype,
        "pipeline_dtype": dtype,
        "tensor_model_parallel_size": mpu.get_tensor_model_parallel_world_size(),
        "pipeline_model_parallel_size": pipeline,
        "virtual_pipeline_model_parallel_size": chunks,
        # between two stages that interleave, forward and backward messages of one batch would be taken for each other
        "overlap_p2p_comm": chunks is not None,
        "batch_p2p_comm": chunks is None,
        "context_parallel_size": mpu.get_context_parallel_world_size(),
        "cp_comm_type": "p2p",
        "expert_model_parallel_size": mpu.get_expert_model_parallel_world_size(),
        "expert_tensor_parallel_size": mpu.get_expert_tensor_parallel_world_size(),
        # packed micro-batches differ in length, so pipeline stages tell each other their shapes
        "variable_seq_lengths": pipeline > 1,
        "moe_grouped_gemm": shape.experts is not None,  # else it refuses to recompute their activation
        "moe_token_dispatcher_type": "alltoall",  # the default is refused beside variable lengths, even without experts
        # our loss carries its own exact denominator: Megatron must sum over micro-batches and ranks, never average
        "calculate_per_token_loss": True,
        "gradient_accumulation_fusion": False,
    }
    fields |= family(shape.family).megatron(shape) | dict(options)
    fields |= rotary_options(shape, bool(fields["apply_rope_fusion"]))
    config = make(**fields)
    stretch_rotated(config, shape)
    config.moe_grouped_gemm = False  # Megatron builds them one by one, and we compute them together
    return config


def layer_spec(
    config: TransformerConfig, name: str, shape: ModelShape, vp_stage: int | None = None
) -> TransformerBlockSubmodules:
    """The transformer layers of this stage, or of its chunk ``vp_stage`` when stages interleave.

    They are TransformerEngine's modules, or Megatron's own with our packed attention and norm. Routers and experts are
    always ours.
    """
    engine = name == "transformer_engine"
    spec = get_gpt_decoder_block_spec(config, engine, normalization="RMSNorm", vp_stage=vp_stage)
    if not engine:
        spec.layer_norm = RmsNorm
    for layer in spec.layer_specs:
        attention = layer.submodules.self_attention.submodules
        if not engine:
            attention.core_attention = PackedSdpaAttention
            _use_our_norm(layer.submodules)
            _use_our_norm(attention)
        if shape.mla and shape.mla.q_rank is None:  # queries that are not compressed have no norm
            attention.q_layernorm = IdentityOp
        if shape.qk_norm == "rotated":
            attention.q_layernorm = attention.k_layernorm = None
            attention.core_attention = with_norms(attention.core_attention)
        if shape.qk_norm == "token":
            attention.q_layernorm = ModuleSpec(TokenNorm, params={"heads": shape.heads})
            attention.k_layernorm = ModuleSpec(TokenNorm, params={"heads": shape.kv_heads})
        _place_norms(layer.submodules, config, shape, engine)
        moe = _submodules(layer.submodules.mlp)
        if isinstance(moe, MoESubmodules):
            moe.router, moe.experts = PolicyRouter, _built_as(GroupedExperts, moe.experts)
    return spec


def _submodules(spec: Any) -> Any:
    """Of a specification, which newer versions of Megatron-Core write as a partial call."""
    return spec.keywords["submodules"] if isinstance(spec, functools.partial) else spec.submodules


def _built_as(module: type, spec: Any) -> Any:
    """A specification with another class to build."""
    if isinstance(spec, functools.partial):
        return functools.partial(module, **spec.keywords)
    spec.module = module
    return spec


def _place_norms(submodules: Any, config: TransformerConfig, shape: ModelShape, engine: bool) -> None:
    """Norms and factors between a layer's parts and the residual; with norms after them alone, none before."""
    if shape.norms != "before" or shape.residual_scale != 1.0:
        params = {"config": config, "normed": shape.norms != "before", "scale": shape.residual_scale}
        submodules.self_attn_bda = submodules.mlp_bda = ModuleSpec(ScaledResidual, params=params)
    if shape.norms == "after":
        submodules.input_layernorm = submodules.pre_mlp_layernorm = IdentityOp
        if engine:  # whose layers have the norms in them
            from megatron.core.extensions.transformer_engine import TEColumnParallelLinear

            submodules.self_attention.submodules.linear_qkv = TEColumnParallelLinear
            _submodules(submodules.mlp).linear_fc1 = TEColumnParallelLinear


def _use_our_norm(submodules: Any) -> None:
    """Wherever Megatron's wrapper of torch's norm stands: it refuses sequence parallelism."""
    for field, module in vars(submodules).items():
        if module is WrappedTorchNorm:
            setattr(submodules, field, RmsNorm)


class PolicyModel(GPTModel):
    """GPTModel whose last stage returns log-probabilities when it is given labels.

    ``forward(..., labels=[1, T] next tokens, loss_mask=[1, T] bool)`` gives on the last pipeline stage a tensor
    [2, N]: log-probabilities and entropies of the N masked positions. Without labels it gives logits [1, T, Vr].

    Args:
        vp_stage: which of this rank's model chunks it is, when pipeline stages interleave.
        balance: weights of the losses that keep experts evenly used.
        entropy_gradient: the entropies have a gradient, too.
        longest: sequence of the engine that samples; where it takes the model's longest one, None.

    Attributes:
        routing: what its routers share; None without experts.
    """

    def __init__(
        self,
        shape: ModelShape,
        config: TransformerConfig,
        spec: TransformerBlockSubmodules,
        temperature: float,
        vp_stage: int | None = None,
        balance: Balance = NO_BALANCE,
        entropy_gradient: bool = False,
        longest: int | None = None,
    ) -> None:
        super().__init__(
            config=config,
            transformer_layer_spec=spec,
            vocab_size=padded_vocabulary(shape.vocab, config.tensor_model_parallel_size),
            max_sequence_length=shape.max_position,
            pre_process=mpu.is_pipeline_first_stage(ignore_virtual=False, vp_stage=vp_stage),
            post_process=mpu.is_pipeline_last_stage(ignore_virtual=False, vp_stage=vp_stage),
            vp_stage=vp_stage,
            parallel_output=True,
            share_embeddings_and_output_weights=shape.tied,
            position_embedding_type="rope",
        )
        if not shape.mla:  # which has one in each layer
            self.rotary_pos_emb.inv_freq = frequencies(shape.rotary, longest or shape.max_position)
        self.shape = shape
        self._temperature, self._entropy_gradient = temperature, entropy_gradient
        self.routing = share_routing_state(self, shape, balance)
        if shape.embedding_scale != 1.0 and self.pre_process:
            self.embedding.register_forward_hook(lambda module, inputs, output: output * shape.embedding_scale)
        patch_model(self)

    def forward(self, *args: Any, context: MicroBatchContext | None = None, **kwargs: Any) -> Tensor:
        """As Megatron's, for the micro-batch of ``context``.

        Without it tokens are routed freely and adapters may have no dropout in training.
        """
        with entered(context):
            output: Tensor = super().forward(*args, **kwargs)
        return output

    def _postprocess(
        self, hidden_states: Tensor, *, labels: Tensor | None, loss_mask: Tensor | None, **others: Any
    ) -> Tensor:
        if labels is None or loss_mask is None or not self.post_process:
            out: Tensor = super()._postprocess(
                hidden_states=hidden_states, labels=labels, loss_mask=loss_mask, **others
            )
            return out / self.shape.logit_divisor if self.post_process and self.shape.logit_divisor != 1.0 else out
        shared = self.shared_embedding_or_output_weight() if self.share_embeddings_and_output_weights else None
        scoring = Scoring(
            labels.flatten(),
            loss_mask.flatten(),
            self.shape.vocab,
            self._temperature * self.shape.logit_divisor,
            shared,
            self._entropy_gradient,
        )
        scores: Tensor = self.output_layer(hidden_states, scoring=scoring)
        return scores
