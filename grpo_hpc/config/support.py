"""What a run file may describe and plan may lay out, but the trainer cannot do yet."""

from __future__ import annotations

from grpo_hpc.config.sections import RunConfig
from grpo_hpc.errors import ConfigError


def untrainable(cfg: RunConfig) -> list[str]:
    """One sentence for each thing in ``cfg`` that the trainer cannot do."""
    found: list[str] = []
    par, roll, tuner = cfg.parallel, cfg.rollout, cfg.tuner
    for key in ("expert_model_parallel_size", "expert_tensor_parallel_size"):
        if (size := getattr(par, key)) > 1:
            found.append(f"parallel.{key} is {size}: the trainer does not cut experts over ranks; use 1")
    if par.decoder_first_pipeline_num_layers or par.decoder_last_pipeline_num_layers:
        found.append("parallel.decoder_*_pipeline_num_layers: the trainer's stages are all of one size")
    if roll.vllm_mode == "server":
        found.append("rollout.vllm_mode is server: the trainer has vLLM in its own processes only; use colocate")
    if tuner.tuner_type == "lora":
        found.append("tuner.tuner_type is lora: the trainer trains all parameters; use full")
    if tuner.freeze_parameters_regex:
        found.append("tuner.freeze_parameters_regex: the trainer trains all parameters")
    return found


def require_trainable(cfg: RunConfig) -> None:
    """Refuse a run that can be planned but not trained.

    Raises:
        ConfigError: names every such option.
    """
    if found := untrainable(cfg):
        raise ConfigError("this run can be planned but not trained:\n" + "\n".join(f"  {text}" for text in found))
