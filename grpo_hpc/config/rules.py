"""Rules that tie two or more keys together, apart from the batch arithmetic of :mod:`grpo_hpc.config.batch`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from grpo_hpc.config import algorithm
from grpo_hpc.config.adapters import target_linears
from grpo_hpc.config.problems import Problem
from grpo_hpc.config.sections import RunConfig
from grpo_hpc.data.template_kwargs import mistake_in
from grpo_hpc.errors import ConfigError


@dataclass(frozen=True)
class _Option:
    """An option that has a meaning only in some runs; given in another one it is an error, not silence."""

    key: str
    means_something: Callable[[RunConfig], bool]
    otherwise: str


def _on_cuda(cfg: RunConfig) -> bool:
    return cfg.resources.device == "cuda"


def _on_servers(cfg: RunConfig) -> bool:
    return cfg.rollout.vllm_mode == "server"


def _colocated(cfg: RunConfig) -> bool:
    return _on_cuda(cfg) and not _on_servers(cfg)


def _with_environment(cfg: RunConfig) -> bool:
    return cfg.rollout.environment is not None


def _adapters(cfg: RunConfig) -> bool:
    return cfg.tuner.tuner_type == "lora"


def _recomputes(granularity: str) -> Callable[[RunConfig], bool]:
    return lambda cfg: cfg.parallel.recompute_granularity == granularity


def _reports_to(*names: str) -> Callable[[RunConfig], bool]:
    return lambda cfg: any(name in cfg.logging.report_to for name in names)


_OPTIONS = (
    _Option(
        "logging.profile_ranks",
        lambda cfg: cfg.logging.profile_steps is not None,
        "has no meaning without logging.profile_steps",
    ),
    _Option(
        "logging.prometheus_host",
        lambda cfg: cfg.logging.prometheus_port is not None,
        "has no meaning without logging.prometheus_port",
    ),
    _Option(
        "logging.log_token_values",
        lambda cfg: cfg.logging.log_completions,
        "has no meaning without logging.log_completions",
    ),
    _Option("resources.gpu", _on_cuda, "has no meaning on a CPU"),
    *(
        _Option(f"rollout.{key}", _on_servers, "has a meaning only with rollout.vllm_mode: server")
        for key in ("vllm_server_nodes", "vllm_server_port", "vllm_server_timeout")
    ),
    *(
        _Option(f"rollout.{key}", _with_environment, "has a meaning only with rollout.environment")
        for key in (
            *("environment_params", "environment_timeout", "environment_memory_gib", "environment_failure"),
            *("max_turns", "max_observation_tokens", "completion_length_limit_scope"),
            *("thinking_history", "tool_parser", "reasoning_parser"),
        )
    ),
    _Option("rollout.sleep_level", _colocated, "has a meaning only where trainer and vLLM share GPUs"),
    *(
        _Option(f"rollout.{key}", lambda cfg: not _on_servers(cfg), "has no meaning with rollout.vllm_mode: server")
        for key in ("offload_model", "offload_optimizer")
    ),
    *(
        _Option(f"tuner.{key}", _adapters, "has a meaning only with tuner.tuner_type: lora")
        for key in ("lora_rank", "lora_alpha", "lora_dropout", "target_modules", "use_rslora")
    ),
    _Option(
        "tuner.freeze_parameters_regex",
        lambda cfg: not _adapters(cfg),
        "has no meaning with tuner.tuner_type: lora, which trains nothing but adapters",
    ),
    _Option(
        "rollout.vllm_gpu_memory_utilization",
        _on_cuda,
        "has no meaning on a CPU; the size of the KV cache is set by rollout.vllm_kv_cache_gib",
    ),
    _Option(
        "rollout.vllm_gpu_memory_utilization",
        lambda cfg: not _on_cuda(cfg) or cfg.rollout.vllm_kv_cache_gib is None,
        "has no meaning beside rollout.vllm_kv_cache_gib, which sets the size of the KV cache; give one of them",
    ),
    _Option("rollout.vllm_enforce_eager", _on_cuda, "has no meaning on a CPU, where vLLM has no CUDA graphs"),
    _Option(
        "batch.micro_batch_size",
        lambda cfg: cfg.batch.max_tokens_per_micro_batch is None,
        "has no meaning beside batch.max_tokens_per_micro_batch; give one of them (micro_batch_size=null takes it out)",
    ),
    _Option(
        "batch.num_train_epochs",
        lambda cfg: cfg.batch.train_iters is None,
        "has no meaning beside batch.train_iters; give one of them (train_iters=null takes it out)",
    ),
    _Option(
        "parallel.recompute_method", _recomputes("full"), "has a meaning only with parallel.recompute_granularity: full"
    ),
    _Option(
        "parallel.recompute_num_layers",
        _recomputes("full"),
        "has a meaning only with parallel.recompute_granularity: full",
    ),
    _Option(
        "parallel.recompute_modules",
        _recomputes("selective"),
        "has a meaning only with parallel.recompute_granularity: selective",
    ),
    _Option(
        "parallel.ddp_bucket_size",
        lambda cfg: cfg.parallel.overlap_grad_reduce,
        "has a meaning only with parallel.overlap_grad_reduce; else all gradients travel together",
    ),
    *(
        _Option(
            f"optimizer.{key}",
            lambda cfg: cfg.optimizer.use_precision_aware_optimizer,
            "has a meaning only with optimizer.use_precision_aware_optimizer",
        )
        for key in ("exp_avg_dtype", "exp_avg_sq_dtype")
    ),
    _Option(
        "optimizer.optimizer_offload_fraction",
        lambda cfg: cfg.optimizer.optimizer_cpu_offload,
        "has a meaning only with optimizer.optimizer_cpu_offload",
    ),
    _Option(
        "optimizer.min_lr",
        lambda cfg: cfg.optimizer.lr_decay_style != "constant",
        "has no meaning while optimizer.lr_decay_style is constant; leave it out or choose linear or cosine",
    ),
    *(
        _Option(f"logging.{name}_{what}", _reports_to(name), f"has a meaning only with {name} in logging.report_to")
        for name in ("wandb", "swanlab")
        for what in ("project", "exp_name")
    ),
    _Option(
        "logging.report_offline",
        _reports_to("wandb", "swanlab"),
        "has a meaning only with wandb or swanlab in logging.report_to",
    ),
)


def meaningless(cfg: RunConfig) -> list[str]:
    """Dotted keys that have no meaning in this run."""
    return list(_reasons(cfg))


def _reasons(cfg: RunConfig) -> dict[str, str]:
    """The same, each with the reason."""
    found = {option.key: option.otherwise for option in _OPTIONS if not option.means_something(cfg)}
    return found | {f"algorithm.{key}": reason for key, reason in algorithm.meaningless(cfg).items()}


def problems(cfg: RunConfig) -> list[Problem]:
    """Every broken rule of ``cfg``."""
    cuts = (_parallel, _pipeline, _token_budget)
    parts = (
        meaningless_but_given,
        _device,
        *cuts,
        _optimizer_device,
        _optimizer,
        _rollout,
        _environment,
        _tuner,
        _profile,
        _rest,
        algorithm.problems,
    )
    return [problem for part in parts for problem in part(cfg)]


def meaningless_but_given(cfg: RunConfig) -> list[Problem]:
    """Options that were given and have no meaning in this run."""
    found: list[Problem] = []
    for key, reason in _reasons(cfg).items():
        section, leaf = key.split(".")
        if leaf in getattr(cfg, section).model_fields_set:
            found.append(Problem(key, reason))
    return found


def _device(cfg: RunConfig) -> list[Problem]:
    if cfg.resources.device == "cpu" and cfg.model.dtype == "bfloat16":
        text = "bfloat16 training needs CUDA (Megatron's bfloat16 optimizer works on CUDA tensors only); use float32"
        return [Problem("model.dtype", text)]
    return []


def _parallel(cfg: RunConfig) -> list[Problem]:
    """What one way to cut the model asks of the others."""
    par = cfg.parallel
    found: list[Problem] = []
    if par.sequence_parallel and par.tensor_model_parallel_size == 1:
        text = "splits tokens over tensor-parallel ranks: it needs parallel.tensor_model_parallel_size of 2 or more"
        found.append(Problem("parallel.sequence_parallel", text))
    etp, tp = par.expert_tensor_parallel_size, par.tensor_model_parallel_size
    if etp not in (1, tp):
        text = f"must be 1 or parallel.tensor_model_parallel_size = {tp}, got {etp}: other cuts give wrong gradients"
        found.append(Problem("parallel.expert_tensor_parallel_size", text))
    if par.overlap_param_gather and not par.use_distributed_optimizer:
        text = "needs parallel.use_distributed_optimizer: without it every rank updates all parameters itself"
        found.append(Problem("parallel.overlap_param_gather", text))
    if par.overlap_param_gather and not par.overlap_grad_reduce:
        found.append(Problem("parallel.overlap_param_gather", "needs parallel.overlap_grad_reduce"))
    return found


def _pipeline(cfg: RunConfig) -> list[Problem]:
    """An interleaved pipeline works on micro-batches in groups of one per stage."""
    par, vpp = cfg.parallel, cfg.parallel.virtual_pipeline_model_parallel_size
    if vpp is None:
        return []
    key, pp = "parallel.virtual_pipeline_model_parallel_size", par.pipeline_model_parallel_size
    if pp == 1:
        return [Problem(key, "needs parallel.pipeline_model_parallel_size of 2 or more")]
    world = cfg.resources.nodes * cfg.resources.nproc_per_node
    replicas = max(1, world // (par.tensor_model_parallel_size * pp * par.context_parallel_size))
    size, unit = cfg.batch.global_batch_size, replicas * pp
    if rest := size % unit:
        text = (
            "the completions of a step on one data-parallel rank must be a multiple of the pipeline stages: "
            f"global_batch_size / (dp * pp) = {size} / ({replicas} * {pp}), remainder {rest}; "
            f"next global_batch_size that fits: {size - rest + unit}"
        )
        return [Problem(key, text)]
    return []


def _optimizer_device(cfg: RunConfig) -> list[Problem]:
    """Optimizer options that only TransformerEngine's Adam or a second device give a meaning to."""
    found: list[Problem] = []
    opt = cfg.optimizer
    for key in ("use_precision_aware_optimizer", "optimizer_cpu_offload"):
        if not getattr(opt, key):
            continue
        if not _on_cuda(cfg):
            found.append(Problem(f"optimizer.{key}", "needs resources.device: cuda"))
        if not cfg.parallel.use_distributed_optimizer:
            found.append(Problem(f"optimizer.{key}", "needs parallel.use_distributed_optimizer"))
    if opt.use_precision_aware_optimizer and cfg.model.dtype == "float32":
        found.append(Problem("optimizer.use_precision_aware_optimizer", "needs model.dtype: bfloat16"))
    if opt.optimizer_cpu_offload and not opt.use_precision_aware_optimizer:
        text = "needs optimizer.use_precision_aware_optimizer: true; Megatron cannot load a checkpoint of the other"
        found.append(Problem("optimizer.optimizer_cpu_offload", text))
    return found


def _token_budget(cfg: RunConfig) -> list[Problem]:
    """Every sequence must fit into a micro-batch by itself."""
    budget, longest = cfg.batch.max_tokens_per_micro_batch, cfg.rollout.vllm_max_model_len
    if longest is None and cfg.data.max_length is not None:
        longest = cfg.data.max_length + cfg.rollout.max_completion_length
    if budget is None or (longest is not None and budget >= longest):
        return []
    key = "batch.max_tokens_per_micro_batch"
    if longest is None:
        text = "needs a bound on the length of a sequence: give data.max_length or rollout.vllm_max_model_len"
        return [Problem(key, text)]
    return [Problem(key, f"must hold the longest sequence, {longest} tokens, got {budget}; at least {longest}")]


def _optimizer(cfg: RunConfig) -> list[Problem]:
    found: list[Problem] = []
    opt = cfg.optimizer
    if opt.min_lr > opt.lr and "optimizer.min_lr" not in meaningless(cfg):
        found.append(Problem("optimizer.min_lr", f"must be at most optimizer.lr = {opt.lr:g}, got {opt.min_lr:g}"))
    return [*found, *warmup_problems(cfg)]


def warmup_problems(cfg: RunConfig) -> list[Problem]:
    """Whether the learning rate warms up before the run ends, as far as its length is known."""
    steps, warmup = cfg.batch.train_iters, cfg.optimizer.lr_warmup_iters
    if steps is None or warmup < steps:
        return []
    text = f"must be less than batch.train_iters = {steps}, got {warmup}; at most {steps - 1}"
    return [Problem("optimizer.lr_warmup_iters", text)]


def length_problems(values: Mapping[str, Any]) -> list[Problem]:
    """Whether the values of a run file say how long the run is."""
    batch = values.get("batch") or {}
    if not isinstance(batch, dict) or any(batch.get(key) is not None for key in ("train_iters", "num_train_epochs")):
        return []
    text = "is required: optimizer steps of the whole run; or give batch.num_train_epochs, times over data.train"
    return [Problem("batch.train_iters", text)]


_THE_TRAINER = "the trainer itself"
# arguments of vLLM's engine that follow from the run file
_DECIDED = {
    "model": "model.path",
    "tokenizer": "model.path",
    "dtype": "rollout.vllm_dtype",
    "seed": "seed",
    "tensor_parallel_size": "rollout.vllm_tensor_parallel_size",
    "pipeline_parallel_size": _THE_TRAINER,
    "data_parallel_size": _THE_TRAINER,
    "max_model_len": "rollout.vllm_max_model_len",
    "max_num_seqs": "rollout.vllm_max_num_seqs",
    "enforce_eager": "rollout.vllm_enforce_eager",
    "enable_sleep_mode": "rollout.sleep_level",
    "gpu_memory_utilization": "rollout.vllm_gpu_memory_utilization",
    "kv_cache_memory_bytes": "rollout.vllm_kv_cache_gib",
    "enable_return_routed_experts": "moe.router_replay_mode",
    **dict.fromkeys(
        (
            *("distributed_executor_backend", "logprobs_mode", "load_format", "language_model_only"),
            *("worker_extension_cls", "disable_log_stats", "skip_tokenizer_init"),
        ),
        _THE_TRAINER,
    ),
}


def _rollout(cfg: RunConfig) -> list[Problem]:
    found: list[Problem] = []
    if cfg.moe.router_replay_mode == "R3" and not _on_cuda(cfg):
        text = (
            "R3 needs resources.device: cuda: vLLM returns the experts of a token from its second model runner only, "
            "which does not run on a CPU; use R2, which replays the trainer's own routing"
        )
        found.append(Problem("moe.router_replay_mode", text))
    if cfg.moe.router_replay_mode == "R3" and _on_servers(cfg):
        text = "R3 needs rollout.vllm_mode: colocate, servers return no experts; use R2, the trainer's own routing"
        found.append(Problem("moe.router_replay_mode", text))
    roll = cfg.rollout
    if roll.top_k == 0:
        found.append(Problem("rollout.top_k", "must be -1 (all tokens) or at least 1, got 0"))
    for name in sorted(roll.vllm_engine_kwargs.keys() & _DECIDED.keys()):
        found.append(Problem("rollout.vllm_engine_kwargs", f"holds {name!r}, which {_DECIDED[name]} decides"))
    prompt = cfg.data.max_length or 1
    needed = prompt + roll.max_completion_length
    if roll.vllm_max_model_len is not None and roll.vllm_max_model_len < needed:
        name = "data.max_length" if cfg.data.max_length else "one prompt token"
        text = (
            f"must hold the prompt and the completion: {name} + rollout.max_completion_length = "
            f"{prompt} + {roll.max_completion_length} = {needed}, got {roll.vllm_max_model_len}"
        )
        found.append(Problem("rollout.vllm_max_model_len", text))
    return found


def _environment(cfg: RunConfig) -> list[Problem]:
    """What an environment asks of the rest of the run, and what asks for one."""
    found: list[Problem] = []
    roll, rewards = cfg.rollout, cfg.rewards
    if roll.environment is not None and roll.vllm_max_model_len is None:
        text = "needs rollout.vllm_max_model_len: tokens of a whole episode, the prompt, all turns and their answers"
        found.append(Problem("rollout.environment", text))
    for column in rewards.of_environment:
        if roll.environment is None:
            found.append(Problem("rewards.reward_funcs", f"names {column}, but there is no rollout.environment"))
        if column in rewards.reward_params:
            found.append(Problem("rewards.reward_params", f"{column} is the environment's and has no parameters"))
        if column in rewards.reward_failure:
            text = f"{column} is the environment's; rollout.environment_failure says what becomes of its failures"
            found.append(Problem("rewards.reward_failure", text))
    if len(rewards.of_environment) > 1:
        found.append(Problem("rewards.reward_funcs", "names what the environment gives twice"))
    return found


def _tuner(cfg: RunConfig) -> list[Problem]:
    found: list[Problem] = []
    if _adapters(cfg):
        try:
            target_linears(cfg.tuner.target_modules)
        except ConfigError as error:
            found.append(Problem("tuner.target_modules", error.message))
        if cfg.checkpoint.reshardable:
            text = "cannot be combined with tuner.tuner_type: lora: adapters are read in the layout they were saved in"
            found.append(Problem("checkpoint.reshardable", text))
        if cfg.algorithm.sync_ref_model:
            text = "cannot be combined with tuner.tuner_type: lora, where the reference is the policy without adapters"
            found.append(Problem("algorithm.sync_ref_model", text))
        if cfg.moe.moe_router_bias_update_rate:
            text = "cannot be combined with tuner.tuner_type: lora, where the model that has the bias stays as it is"
            found.append(Problem("moe.moe_router_bias_update_rate", text))
    try:
        re.compile(cfg.tuner.freeze_parameters_regex or "")
    except (re.error, RecursionError, OverflowError) as error:
        found.append(Problem("tuner.freeze_parameters_regex", f"is no regular expression: {error}"))
    return found


def _profile(cfg: RunConfig) -> list[Problem]:
    """Steps and ranks that there are; how long the run is may not be known yet."""
    found: list[Problem] = []
    logging, steps = cfg.logging, cfg.batch.train_iters
    if logging.profile_steps is not None:
        first, last = logging.profile_steps
        if first > last:
            text = f"is the first and the last step, got {first} and {last}: give [{last}, {first}]"
            found.append(Problem("logging.profile_steps", text))
        elif steps is not None and last > steps:
            found.append(Problem("logging.profile_steps", f"names step {last}, and the run has {steps}"))
    world = cfg.resources.nodes * cfg.resources.nproc_per_node
    if beyond := [rank for rank in logging.profile_ranks if rank >= world]:
        found.append(Problem("logging.profile_ranks", f"names rank {beyond[0]}, and the run has 0 to {world - 1}"))
    return found


def _rest(cfg: RunConfig) -> list[Problem]:
    found: list[Problem] = []
    rewards = cfg.rewards
    if rewards.reward_weights is not None and len(rewards.reward_weights) != len(rewards.reward_funcs):
        text = (
            f"needs one weight per reward function: {len(rewards.reward_funcs)} functions "
            f"({', '.join(rewards.reward_funcs)}), {len(rewards.reward_weights)} weights"
        )
        found.append(Problem("rewards.reward_weights", text))
    columns = rewards.columns
    for name in sorted(rewards.reward_failure.keys() - set(columns)):
        text = f"{name!r} is not among rewards.reward_funcs: {', '.join(columns)}"
        found.append(Problem("rewards.reward_failure", text))
    for name in sorted(set(cfg.logging.report_to)):
        if cfg.logging.report_to.count(name) > 1:
            found.append(Problem("logging.report_to", f"names {name} twice"))
    if mistake := mistake_in(cfg.data.chat_template_kwargs):
        found.append(Problem("data.chat_template_kwargs", mistake))
    if cfg.evaluation.eval_steps is not None and cfg.data.eval is None:
        found.append(Problem("evaluation.eval_steps", "needs rows to evaluate on: give data.eval"))
    if cfg.checkpoint.save_total_limit is not None and cfg.checkpoint.save_steps is None:
        text = "has no meaning without checkpoint.save_steps: one checkpoint is written, at the end"
        found.append(Problem("checkpoint.save_total_limit", text))
    return found
