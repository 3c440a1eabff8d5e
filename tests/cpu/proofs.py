"""The families, which variants of each are proven, and how: docs/models.md is made from it."""

from __future__ import annotations

from dataclasses import dataclass

import layouts
from tiny import has_experts

_LATENT = "not on a CPU, where vLLM takes no new weights for latent attention"


@dataclass(frozen=True)
class Proof:
    """What is proven of one family.

    Attributes:
        checkpoints: published ones.
        variants: of ``tiny.OWN``, each with whether the embedding is tied.
        engine: why vLLM's CPU build is not compared; empty where it is.
    """

    checkpoints: str
    variants: tuple[tuple[str, bool], ...]
    engine: str = ""


PROOFS = {
    "llama": Proof(
        "Llama 2 to 3.3, SmolLM2, InternLM3", (("llama", True), ("llama+3.1", False), ("llama+dynamic", False))
    ),
    "mistral": Proof("Mistral 7B, Nemo, Small 2501", (("mistral", False),)),
    "qwen2": Proof("Qwen2, Qwen2.5, MiMo-7B", (("qwen2", True),)),
    "qwen3": Proof("Qwen3", (("qwen3", False),)),
    "seed_oss": Proof("Seed-OSS-36B", (("seed_oss", False),)),
    "smollm3": Proof("SmolLM3-3B", (("smollm3", True),)),
    "phi3": Proof("Phi-3, Phi-3.5-mini, Phi-4, Phi-4-mini", (("phi3", False), ("phi3+mini", True))),
    "ernie4_5": Proof("ERNIE-4.5-0.3B", (("ernie4_5", True),)),
    "ministral3": Proof("Devstral 2", (("ministral3", False),)),
    "glm4": Proof("GLM-4-9B-0414, 32B-0414, GLM-Z1", (("glm4", False),)),
    "olmo2": Proof("OLMo 2", (("olmo2", False),)),
    "granite": Proof("Granite 3.0 to 3.3 (dense)", (("granite", True),)),
    "hunyuan_v1_dense": Proof("Hunyuan 0.5B to 7B", (("hunyuan_v1_dense", True),)),
    "qwen2_moe": Proof("Qwen1.5-MoE-A2.7B, Qwen2-57B-A14B", (("qwen2_moe", False),)),
    "qwen3_moe": Proof("Qwen3-30B-A3B, Qwen3-235B-A22B", (("qwen3_moe", True), ("qwen3_moe+dense", False))),
    "mixtral": Proof("Mixtral 8x7B, 8x22B", (("mixtral", False),)),
    "olmoe": Proof("OLMoE-1B-7B", (("olmoe", False),)),
    "deepseek_v2": Proof("DeepSeek-V2, V2-Lite", (("deepseek_v2", False),), _LATENT),
    "deepseek_v3": Proof(
        "DeepSeek-V3, R1, Moonlight-16B-A3B", (("deepseek_v3", False), ("deepseek_v3+moonlight", False)), _LATENT
    ),
    "kimi_k2": Proof("Kimi-K2", (), "as `deepseek_v3`, whose code reads it"),
    "glm4_moe": Proof("GLM-4.5, 4.6, 4.7 and Air", (("glm4_moe", False),)),
    "glm4_moe_lite": Proof("GLM-4.7-Flash", (("glm4_moe_lite", False),), _LATENT),
    "minimax_m2": Proof(
        "MiniMax-M2", (("minimax_m2", False),), "not on a CPU, where vLLM 0.32 takes no new weights for its norms"
    ),
    "hy_v3": Proof("Hy3", (("hy_v3", False),)),
    "ernie4_5_moe": Proof(
        "ERNIE-4.5-21B-A3B, 300B-A47B",
        (("ernie4_5_moe", True),),
        "not on a CPU, where vLLM 0.32 chooses experts without the bias",
    ),
    "qwen2_5_vl": Proof("Qwen2.5-VL, on text", (("qwen2_5_vl", False),)),
    "qwen3_vl": Proof("Qwen3-VL, on text", (("qwen3_vl", True),)),
}
VARIANTS = [variant for proof in PROOFS.values() for variant in proof.variants]
"""Logits, gradients, export and conversion of each are compared with transformers."""

_ON_FOUR_RANKS = {layouts.MODELS[case.model][0] for case in layouts.LAYOUTS.values()}
_OTHERWISE = {"mistral", "qwen2_5_vl", "qwen3_vl"}  # their decoders are those of llama, qwen2 and qwen3
CUT = [
    (name, tied)
    for family, proof in PROOFS.items()
    for name, tied in proof.variants
    if family not in _ON_FOUR_RANKS | _OTHERWISE or name == "deepseek_v3+moonlight"
]
"""One optimizer step of each on two ranks is compared with that on one."""

_IN_WHOLE_RUNS = {"mixtral", "qwen2_5_vl", "qwen3_vl"}  # of test_sync
SERVED = [
    variant
    for family, proof in PROOFS.items()
    for variant in proof.variants
    if not proof.engine and family not in _IN_WHOLE_RUNS
]
"""vLLM samples from weights of each that were synced to it."""


def axes(name: str) -> dict[str, dict[str, object]]:
    """Layouts of two ranks for a variant, as keys of the run file."""
    sizes = ["tensor_model_parallel_size", "pipeline_model_parallel_size", "context_parallel_size"]
    sizes += ["expert_model_parallel_size"] if has_experts(name) else []
    cut: dict[str, dict[str, object]] = {size[:1] + "p2": {size: 2} for size in sizes}
    if has_experts(name):  # which need it under tensor parallelism
        cut["tp2"] |= {"sequence_parallel": True}
    return cut


def markdown() -> str:
    """The families as a page of documentation."""
    rows = []
    for family, proof in PROOFS.items():
        names = [name for name, _ in proof.variants]
        cut = "[layouts.md](layouts.md)" if set(names) & _ON_FOUR_RANKS else ""
        if set(names) & {name for name, _ in CUT}:
            cut = ", ".join(filter(None, [" ".join(axes(names[-1])), cut]))
        equal = "yes" if names else proof.engine
        served = (proof.engine or "yes") if names else "-"
        rows.append(f"| `{family}` | {proof.checkpoints} | {equal} | {cut or '-'} | {served} |")
    return "\n".join([_HEAD, *rows, ""])


_HEAD = """# Models

`grpo-hpc` trains the families below; the word in the first column is the `model_type` of a model's `config.json`.
Weights are read from a folder in bfloat16 or float32. Layers that predict further tokens (`num_nextn_predict_layers`,
`mtp`) are left out: they are not trained, and exports do not have them. [adding_a_family.md](adding_a_family.md) adds
one; `grpo-hpc checkpoint inspect MODEL` says of another model which of these it resembles, and what differs.

- Published in FP8 or packed INT4 (DeepSeek-V3, Kimi-K2, MiniMax-M2), a model is made plain first:
  `grpo-hpc checkpoint convert SRC DST --to hf` ([checkpoints.md](checkpoints.md)).
- Some folders bring a tokenizer that is a program of its own (Moonlight, Kimi-K2, InternLM3). It is refused until
  `model.trust_remote_code: true` says that it may run, which it then does on every node, with all that the run may do.
  It travels into exports. A folder's code for the model itself computes nothing: Megatron and vLLM's own classes do.
- MiMo-7B is a Qwen2 and InternLM3 a Llama, once their `config.json` says so: the error of a plan has the words.
- Models with one set of rotary frequencies for short sequences and one for long ones (LongRoPE: Phi-3.5, Phi-4-mini)
  take the set for `rollout.vllm_max_model_len`, or the model's longest sequence without it, as vLLM does.
- `ministral3` with `llama_4_scaling_beta` is trained up to the length that it was first trained at, where this has no
  effect; a longer `rollout.vllm_max_model_len` is refused.
- Norms inside latent attention have the model's `rms_norm_eps`, as in vLLM; transformers has 1e-6 there. In the proofs
  of the models where this differs, logits are 4e-5 apart at most.

## What is proven

Each proof is of a small random model that transformers' own class makes, on a CPU in float32, of awkward sizes:

- *equal*: logits of packed sequences are transformers' to 1e-4, gradients of a weighted sum of log-probabilities to
  1e-4 (relative), weights come back to the bit from training's export and from `checkpoint convert` in four layouts,
  and the planner counts the parameters that transformers counts (`tests/cpu/test_models.py`, `test_convert.py`);
- *cut*: one optimizer step on two ranks, cut by the named axis, is that of one rank: gradients to 1e-5, relative
  (`tests/cpu/test_family_layouts.py`), or on four ranks, where layouts.md is named;
- *vLLM*: what its CPU build samples from synced weights, before and after an update, has the trainer's
  log-probabilities to 1e-3 (`tests/cpu/test_family_engines.py`, `test_sync.py`).

This page is generated: `PYTHONPATH=tests/cpu python -m proofs > docs/models.md`.

| family | published models | equal | cut | vLLM |
|---|---|---|---|---|"""


if __name__ == "__main__":
    print(markdown(), end="")
