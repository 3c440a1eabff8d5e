"""Every key of the run file, with its type, default, bounds and meaning.

Each section is one small frozen model. Key names are unique over all sections, so an override may leave the section
out. Rules that tie several keys together live in :mod:`grpo_hpc.config.rules` and :mod:`grpo_hpc.config.batch`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue
from pydantic_core import PydanticCustomError

from grpo_hpc.config.environment_name import file_and_name, is_environment, with_absolute_file
from grpo_hpc.config.patterns import WallTime, matching
from grpo_hpc.config.site_paths import SitePath, expanded
from grpo_hpc.errors import ConfigError
from grpo_hpc.rewards.names import ENVIRONMENT, column_of, file_of, is_path, target_of, with_file, with_paths

# Beyond these no machine is; they keep a slip of the finger from making a planner count for days.
MOST_RANKS = 32_768
MOST_LAYERS = 10_000
MOST_COMPLETIONS = 2**20
LONGEST = 10**8  # tokens

Precision = Literal["float32", "bfloat16"]
RecomputeModule = Literal["core_attn", "mlp", "layernorm", "moe_act", "moe", "shared_experts"]


class Section(BaseModel):
    """Base of all sections: immutable, no unknown keys, no silent conversion ("4" is not 4), no NaN or infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())


class Model(Section):
    """The policy that is trained."""

    path: SitePath = Field(min_length=1, description="Hugging Face folder: config.json, safetensors and tokenizer")
    config: SitePath | None = Field(
        default=None,
        min_length=1,
        description="a config.json, or the name of one in configs/models, to plan with while `path` is not there",
    )
    dtype: Precision = Field(default="bfloat16", description="training precision")
    trust_remote_code: bool = Field(
        default=False,
        description="run the Python code that a model's folder brings for its tokenizer, on every node; vLLM then runs "
        "what it brings for its configuration, too",
    )


class Data(Section):
    """Prompts to train and evaluate on."""

    train: SitePath = Field(min_length=1, description="rows to train on: JSON lines, Parquet or a `datasets` folder")
    eval: SitePath | None = Field(default=None, min_length=1, description="held-out rows for evaluation")
    system: str | None = Field(
        default=None, min_length=1, description="system message of every chat that does not begin with its own"
    )
    chat_template_kwargs: dict[str, JsonValue] = Field(
        default={},
        description="what the chat template is told beside the messages, such as enable_thinking: false; a row's "
        "column of this name counts more",
    )
    max_length: int | None = Field(
        default=None, ge=1, le=LONGEST, description="longest prompt in tokens; longer rows are dropped"
    )
    shuffle: bool = Field(default=True, description="a new order of the rows in every epoch")


class Resources(Section):
    """The machine that the run asks for."""

    device: Literal["cpu", "cuda"] = Field(default="cuda", description="where training and rollouts run")
    nodes: int = Field(default=1, ge=1, le=MOST_RANKS, description="number of machines")
    nproc_per_node: int = Field(
        default=8, ge=1, le=1024, description="training processes per node: GPUs, or ranks on a CPU"
    )
    gpu: SitePath = Field(
        default="h100", min_length=1, description="hardware to plan for: a profile's name, or a file made by measuring"
    )
    distributed_timeout_minutes: float = Field(
        default=30.0, gt=0, le=1e6, description="longest that a rank waits for the others in a collective of training"
    )


class Parallel(Section):
    """How Megatron cuts the model over the ranks."""

    tensor_model_parallel_size: int = Field(
        default=1, ge=1, le=MOST_RANKS, description="ranks that share every layer (tp)"
    )
    pipeline_model_parallel_size: int = Field(
        default=1, ge=1, le=MOST_RANKS, description="stages that the layers are cut into (pp)"
    )
    context_parallel_size: int = Field(
        default=1, ge=1, le=MOST_RANKS, description="ranks that share every sequence (cp)"
    )
    expert_model_parallel_size: int = Field(
        default=1, ge=1, le=MOST_RANKS, description="ranks that share the experts (ep)"
    )
    expert_tensor_parallel_size: int = Field(
        default=1, ge=1, le=MOST_RANKS, description="ranks that share one expert (etp)"
    )
    decoder_first_pipeline_num_layers: int | None = Field(
        default=None, ge=1, le=MOST_LAYERS, description="layers on the first stage; absent: as many as on the others"
    )
    decoder_last_pipeline_num_layers: int | None = Field(
        default=None, ge=1, le=MOST_LAYERS, description="layers on the last stage; absent: as many as on the others"
    )
    virtual_pipeline_model_parallel_size: int | None = Field(
        default=None,
        ge=2,
        le=MOST_LAYERS,
        description="chunks of layers on each stage of an interleaved pipeline (vpp)",
    )
    sequence_parallel: bool = Field(
        default=False, description="between layers, tensor-parallel ranks split the tokens instead of repeating them"
    )
    recompute_granularity: Literal["selective", "full"] | None = Field(
        default=None, description="compute again in the backward pass: parts of each layer, or whole layers"
    )
    recompute_method: Literal["uniform", "block"] = Field(
        default="uniform", description="full: all layers in groups of recompute_num_layers, or only the first that many"
    )
    recompute_num_layers: int = Field(default=1, ge=1, le=MOST_LAYERS, description="full: see recompute_method")
    recompute_modules: list[RecomputeModule] = Field(
        default=["core_attn"], min_length=1, description="selective: what is computed again"
    )
    use_distributed_optimizer: bool = Field(
        default=True, description="optimizer state is cut over the data-parallel ranks"
    )
    overlap_grad_reduce: bool = Field(
        default=False, description="gradients are summed over replicas during the backward pass"
    )
    overlap_param_gather: bool = Field(
        default=False, description="updated parameters are gathered during the next forward pass"
    )
    ddp_bucket_size: int | None = Field(
        default=None,
        ge=1,
        le=10**12,
        description="parameters whose gradients travel together; absent: Megatron's choice",
    )


class Moe(Section):
    """Routing of tokens to experts; without meaning for a model that has none."""

    moe_router_dtype: Literal["fp32", "fp64", "none"] = Field(
        default="fp32", description="precision in which routers compute; none: that of the model"
    )
    moe_aux_loss_coeff: float = Field(
        default=0.0, ge=0, le=1e6, description="weight of the balance loss of each sequence"
    )
    moe_z_loss_coeff: float = Field(default=0.0, ge=0, le=1e6, description="weight of the routers' z-loss")
    moe_router_bias_update_rate: float = Field(
        default=0.0,
        ge=0,
        le=1e6,
        description="what the bias of an expert moves by at an optimizer step, towards equal load",
    )
    router_replay_mode: Literal["disabled", "R2", "R3"] = Field(
        default="disabled",
        description="experts of a token in training: chosen anew, as when old log-probabilities were computed (R2), "
        "or as vLLM chose them (R3)",
    )

    @property
    def balances(self) -> bool:
        """Whether the load of experts has a say in what is learned: then every completion counts."""
        return max(self.moe_aux_loss_coeff, self.moe_z_loss_coeff, self.moe_router_bias_update_rate) > 0

    def chosen(self) -> list[str]:
        """Keys that are not at their defaults."""
        return [key for key, field in type(self).model_fields.items() if getattr(self, key) != field.default]


class Batch(Section):
    """Batch sizes, all counted in completions, and the length of the run."""

    micro_batch_size: int = Field(
        default=1, ge=1, le=MOST_COMPLETIONS, description="completions per forward pass on one data-parallel rank"
    )
    max_tokens_per_micro_batch: int | None = Field(
        default=None,
        ge=2,
        le=10**10,
        description="tokens per forward pass on one data-parallel rank, instead of micro_batch_size",
    )
    global_batch_size: int = Field(
        default=16, ge=1, le=MOST_COMPLETIONS, description="completions per optimizer step over all ranks"
    )
    steps_per_generation: int | None = Field(
        default=None, ge=1, le=10_000, description="optimizer steps made from one rollout"
    )
    generation_batch_size: int | None = Field(
        default=None, ge=1, le=MOST_COMPLETIONS, description="completions per rollout"
    )
    num_generations: int = Field(default=8, ge=2, le=10_000, description="completions per prompt, the group of GRPO")
    num_iterations: int = Field(default=1, ge=1, le=1000, description="times that the optimizer goes over one rollout")
    train_iters: int | None = Field(
        default=None,
        ge=1,
        le=10**9,
        description="optimizer steps of the whole run; this or num_train_epochs is required",
    )
    num_train_epochs: int | None = Field(
        default=None,
        ge=1,
        le=10**6,
        description="times that the run goes over data.train: rows * num_generations * epochs // global_batch_size "
        "optimizer steps",
    )

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole run.

        Raises:
            ConfigError: they follow from rows that nobody has counted.
        """
        if self.train_iters is None:
            raise ConfigError(
                "how many optimizer steps batch.num_train_epochs are is not known: the rows of data.train are not here",
                "Give batch.train_iters in its place, or put the rows where data.train says.",
            )
        return self.train_iters


def _environment(text: str) -> str:
    if not is_environment(text):
        raise PydanticCustomError("form", "must be path/to/file.py, for the functions in it, or path/to/file.py:Name")
    return with_absolute_file(text, expanded)


def _parameters(given: dict[str, Any]) -> dict[str, Any]:
    return with_paths(given, expanded)


class Rollout(Section):
    """vLLM and how it samples."""

    vllm_mode: Literal["colocate", "server"] = Field(
        default="colocate", description="vLLM lives in the training processes, or on nodes of its own"
    )
    vllm_server_nodes: int = Field(
        default=1, ge=1, le=MOST_RANKS, description="nodes of the vLLM servers, besides resources.nodes"
    )
    vllm_server_port: int = Field(
        default=8000, ge=1024, le=65535, description="port of the first server on a node; further ones count up"
    )
    vllm_server_timeout: float = Field(
        default=600, gt=0, le=1e6, description="seconds after their start until which every vLLM server must answer"
    )
    sleep_level: Literal[0, 1, 2] = Field(
        default=0, description="vLLM while training: 0 stays, 1 keeps its weights in host memory, 2 drops them"
    )
    offload_model: bool = Field(
        default=False, description="training weights and gradients leave the GPU in rollouts; on a CPU a rehearsal"
    )
    offload_optimizer: bool = Field(default=False, description="optimizer state leaves the GPU during rollouts")
    vllm_dtype: Precision = Field(default="bfloat16", description="precision of the rollout weights")
    vllm_tensor_parallel_size: int = Field(
        default=1, ge=1, le=MOST_RANKS, description="ranks that share one vLLM engine"
    )
    vllm_gpu_memory_utilization: float = Field(
        default=0.3,
        gt=0,
        lt=1,
        description="share of each GPU that vLLM may take, KV cache included; 0.3 where the plan cannot decide",
    )
    vllm_kv_cache_gib: float | None = Field(
        default=None,
        gt=0,
        le=1e6,
        description="KV cache of each engine in GiB, in place of a share; without both an engine on a GPU that "
        "resources.gpu names gets room for all of its completions, or what is left, and one on a CPU 1 GiB",
    )
    vllm_max_model_len: int | None = Field(
        default=None, ge=2, le=LONGEST, description="longest prompt + completion in tokens"
    )
    vllm_max_num_seqs: int | None = Field(
        default=None,
        ge=1,
        le=MOST_COMPLETIONS,
        description="completions that one engine works on at a time; there are CUDA graphs for batches up to twice as "
        "large, at most 512; absent: its share of a rollout, from 64 to 512",
    )
    vllm_enforce_eager: bool = Field(default=False, description="run vLLM without CUDA graphs")
    rollout_timeout_minutes: float = Field(
        default=120.0,
        gt=0,
        le=1e6,
        description="longest that a rank waits for a rollout: its own server's, or the other ranks'",
    )
    sync_bucket_mib: float = Field(
        default=512.0,
        gt=0,
        le=1e6,
        description="weights on their way to vLLM that a rank holds whole at a time, in MiB",
    )
    canary_tolerance: float | None = Field(
        default=None,
        gt=0,
        le=1e6,
        description="largest mean distance of vLLM's log-probabilities from the trainer's when a run starts, in nat; "
        "absent: 0.02 where both are float32, else 0.2",
    )
    max_completion_length: int = Field(default=512, ge=1, le=LONGEST, description="longest completion in tokens")
    temperature: float = Field(default=1.0, gt=0, le=10, description="sampling temperature, also used in training")
    top_p: float = Field(default=1.0, gt=0, le=1, description="probability mass that is sampled from; 1 keeps all")
    top_k: int = Field(default=-1, ge=-1, le=10**9, description="number of tokens that are sampled from; -1 keeps all")
    min_p: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="tokens less likely than this share of the likeliest one are not sampled; 0 keeps all",
    )
    repetition_penalty: float = Field(
        default=1.0,
        gt=0,
        le=10,
        description="logits of tokens that prompt or completion hold are divided by it, negative ones multiplied; "
        "1 leaves them",
    )
    presence_penalty: float = Field(
        default=0.0, ge=-2, le=2, description="taken from the logits of tokens that the completion has already"
    )
    frequency_penalty: float = Field(
        default=0.0, ge=-2, le=2, description="taken from the logits of tokens, times how often the completion has them"
    )
    structured_outputs_regex: str | None = Field(
        default=None, min_length=1, description="regular expression that every completion must match as a whole"
    )
    stop: list[Annotated[str, Field(min_length=1)]] = Field(
        default=[], description="texts that end a completion, which ends with the token that completes one of them"
    )
    stop_token_ids: list[Annotated[int, Field(ge=0, le=2**31 - 1)]] = Field(
        default=[], description="tokens that end a completion besides those that the model's own files name"
    )
    vllm_engine_kwargs: dict[str, JsonValue] = Field(
        default={}, description="further arguments of vLLM's engine, by the names that vLLM gives them"
    )

    environment: Annotated[str, AfterValidator(_environment)] | None = Field(
        default=None,
        description="what answers the policy: path/to/file.py for functions that it may call, path/to/file.py:Name for "
        "one of them or a class; absent: nothing, a completion is one turn",
    )
    environment_params: Annotated[dict[str, JsonValue], AfterValidator(_parameters)] = Field(
        default={}, description="keyword arguments of the environment's class"
    )
    environment_timeout: float = Field(
        default=60.0, gt=0, le=1e6, description="seconds that an environment has for one turn"
    )
    environment_memory_gib: float = Field(
        default=4.0, gt=0, le=1e6, description="memory that the process of an environment may hold, in GiB"
    )
    environment_failure: Literal["drop", "zero"] = Field(
        default="drop",
        description="an episode whose environment fails: it has no reward and no vote in the baseline, or reward 0",
    )
    max_turns: int = Field(
        default=10, ge=1, le=10**6, description="turns of the policy after which an episode is over at the latest"
    )
    max_observation_tokens: int = Field(
        default=2048, ge=1, le=LONGEST, description="longest message of an environment in tokens; the rest is cut off"
    )
    completion_length_limit_scope: Literal["per_round", "total"] = Field(
        default="per_round", description="max_completion_length is for each turn, or for all turns of an episode"
    )
    thinking_history: Literal["keep", "template"] = Field(
        default="keep",
        description="thoughts of earlier turns stay, or go where the chat template takes them out; then the rest of "
        "the episode is a sequence of its own",
    )
    tool_parser: str = Field(
        default="auto", min_length=1, description="vLLM's parser of tool calls; auto: that of the model's family"
    )
    reasoning_parser: str = Field(
        default="auto", min_length=1, description="vLLM's parser of thoughts; auto: that of the model's family"
    )

    @property
    def files(self) -> list[str]:
        """Files and folders that the environment reads: its own, and paths among its parameters."""
        own = [] if self.environment is None else [file_and_name(self.environment)[0]]
        return own + [str(value) for name, value in self.environment_params.items() if is_path(name, value)]

    @property
    def reshaped_by(self) -> list[str]:
        """Keys under which tokens are not sampled from the softmax of all logits, as ``top_p 0.9``."""
        shown = [f"top_p {self.top_p:g}"] * (self.top_p < 1) + [f"top_k {self.top_k}"] * (self.top_k > 0)
        shown += [f"min_p {self.min_p:g}"] * (self.min_p > 0)
        penalties = {"repetition": self.repetition_penalty - 1, "presence": self.presence_penalty}
        penalties |= {"frequency": self.frequency_penalty}
        shown += [f"{name}_penalty" for name, strength in penalties.items() if strength]
        return shown + ["structured_outputs_regex"] * (self.structured_outputs_regex is not None)

    @property
    def ranks_of_engine(self) -> int:
        """Training processes that share an engine, and the same requests to it; none share those to servers."""
        return self.vllm_tensor_parallel_size if self.vllm_mode == "colocate" else 1

    def kv_cache_gib(self, device: str) -> float | None:
        """Size of the KV cache of each engine in GiB; None where it is what an engine's share of the GPU leaves."""
        return 1.0 if self.vllm_kv_cache_gib is None and device == "cpu" else self.vllm_kv_cache_gib

    def engine_memory(self, device: str) -> dict[str, float | int]:
        """vLLM's arguments for the memory that it may take."""
        gib = self.kv_cache_gib(device)
        if gib is None:
            return {"gpu_memory_utilization": self.vllm_gpu_memory_utilization}
        size: dict[str, float | int] = {"kv_cache_memory_bytes": int(gib * 2**30)}
        # with a size the share decides nothing, but as much must be free at the start
        return size if device == "cpu" else size | {"gpu_memory_utilization": 0.01}


class Algorithm(Section):
    """The objective; docs/algorithms.md has every formula."""

    loss_type: str = Field(default="grpo", description="policy loss; `grpo-hpc train --list losses` shows them")
    importance_sampling_level: Literal["token", "sequence", "sequence_token"] = Field(
        default="token", description="ratio per token, per completion (GSPO), or of the completion per token"
    )
    epsilon: float = Field(default=0.2, gt=0, lt=1, description="the ratio is clipped below at 1 - epsilon")
    epsilon_high: float | None = Field(
        default=None,
        gt=0,
        le=1e6,
        description="the ratio is clipped above at 1 + epsilon_high (absent: epsilon); for cispo the largest ratio "
        "itself (absent: 5)",
    )
    delta: float | None = Field(
        default=None, gt=1, le=1e6, description="upper bound of the ratio where the advantage is negative"
    )
    tau_pos: float = Field(default=1.0, gt=0, le=1e6, description="sapo: sharpness of the gate for positive advantages")
    tau_neg: float = Field(default=1.05, gt=0, le=1e6, description="sapo: the same for negative advantages")
    real_tau: float = Field(default=0.5, gt=0, le=1e6, description="real: temperature of the scores")
    fipo_decay_rate: float = Field(
        default=32.0, gt=0, le=1e6, description="fipo: tokens after which the future counts half"
    )
    fipo_clip_range: float = Field(default=0.2, gt=0, lt=1, description="fipo: how far its weight may leave 1")
    fipo_clip_high_only: bool = Field(default=True, description="fipo: its weight is never below 1")
    fipo_safety_threshold: float | None = Field(
        default=4.0, gt=1, le=1e6, description="fipo: from this ratio on a negative advantage gets no weight above 1"
    )
    loss_scaling: Literal["exact", "ms_swift"] = Field(
        default="exact", description="denominators: exact over the optimizer step, or as ms-swift has them"
    )
    beta: float = Field(
        default=0.0, ge=0, le=1e6, description="weight of the KL term to the reference model; 0 needs no reference"
    )
    kl_estimator: Literal["k1", "k2", "k3"] = Field(default="k3", description="estimator of the KL term in the loss")
    kl_in_reward: bool = Field(
        default=False, description="subtract beta times the KL (k1, summed) from the reward instead"
    )
    sync_ref_model: bool = Field(default=False, description="move the reference model towards the policy now and then")
    ref_model_sync_steps: int = Field(default=512, ge=1, le=10**9, description="optimizer steps between two such moves")
    ref_model_mixup_alpha: float = Field(
        default=0.6, gt=0, le=1, description="share of the policy in the reference model after a move"
    )
    advantage_estimator: str = Field(
        default="grpo", description="baseline of the rewards; `grpo-hpc train --list estimators` shows them"
    )
    scale_rewards: Literal["group", "batch", "none", "gdpo"] = Field(
        default="group", description="whose standard deviation advantages are divided by; gdpo: each reward's own"
    )
    turn_advantage_coef: float = Field(
        default=0.0,
        ge=0,
        le=1e6,
        description="weight of the advantages of turns, from an environment's rewards for them",
    )
    dynamic_sample: bool = Field(default=False, description="sample on until every group's rewards differ")
    max_resample_times: int = Field(default=3, ge=1, le=1000, description="further rounds of sampling at most")
    overlong_filter: bool = Field(default=False, description="leave completions that were cut off out of the loss")
    rollout_importance_sampling_mode: (
        Literal["token_truncate", "token_mask", "sequence_truncate", "sequence_mask"] | None
    ) = Field(default=None, description="correction of the difference between engine and trainer; absent: none")
    rollout_importance_sampling_threshold: float = Field(
        default=2.0, ge=1, le=1e6, description="upper bound of its weights"
    )
    rollout_importance_sampling_min: float = Field(default=0.0, ge=0, le=1, description="lower bound of its weights")
    off_policy_sequence_mask_delta: float | None = Field(
        default=None,
        gt=0,
        le=1e6,
        description="completions with a negative advantage leave the loss beyond this mean drift",
    )
    top_entropy_quantile: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="share of tokens, those with the highest entropy, that the policy loss takes",
    )
    entropy_coef: float = Field(default=0.0, ge=0, le=1e6, description="weight of the entropy bonus")


def _function(name: str) -> str:
    return with_file(name, expanded)


class Rewards(Section):
    """What is rewarded."""

    reward_funcs: list[Annotated[str, AfterValidator(_function)]] = Field(
        min_length=1,
        description="registered names, path/to/file.py:function, or environment for what rollout.environment gives; "
        "column=name for another column",
    )
    reward_weights: list[Annotated[float, Field(ge=-1e6, le=1e6)]] | None = Field(
        default=None, description="one weight per reward function; absent: all 1"
    )
    reward_params: dict[str, Annotated[dict[str, Any], AfterValidator(_parameters)]] = Field(
        default={}, description="parameters by reward function; `grpo-hpc train --list rewards` shows them"
    )
    reward_failure: dict[str, Literal["zero", "nan", "fail"]] = Field(
        default={}, description="by reward function, a completion it fails on: 0, no score (default), or the run ends"
    )
    reward_workers: int = Field(
        default=2, ge=1, le=1024, description="processes that call reward functions, for each rank"
    )
    reward_concurrency: int = Field(
        default=32, ge=1, le=65_536, description="calls of async functions at a time, for each rank"
    )
    reward_timeout: float = Field(
        default=60.0, gt=0, le=1e6, description="seconds that a function has for one completion"
    )
    reward_retries: int = Field(
        default=1, ge=0, le=1000, description="further attempts at a completion after a failure"
    )

    @property
    def columns(self) -> list[str]:
        """One name per reward, in the order of ``reward_funcs``."""
        return [column_of(name) for name in self.reward_funcs]

    @property
    def called(self) -> list[str]:
        """Rewards that are functions or models: all but those that the environment gives."""
        return [name for name in self.reward_funcs if target_of(name) != ENVIRONMENT]

    @property
    def of_environment(self) -> list[str]:
        """Columns of what the environment gave in an episode, in sum."""
        return [column_of(name) for name in self.reward_funcs if target_of(name) == ENVIRONMENT]

    @property
    def files(self) -> list[str]:
        """Files and folders that rewards read: their own, and paths among their parameters."""
        own = [file for name in self.reward_funcs if (file := file_of(name))]
        named = [v for given in self.reward_params.values() for name, v in given.items() if is_path(name, v)]
        return own + named


class Optimizer(Section):
    """Adam and its learning rate."""

    lr: float = Field(default=1e-6, gt=0, le=1e38, description="highest learning rate")
    min_lr: float = Field(default=0.0, ge=0, le=1e6, description="learning rate that the decay ends at")
    lr_decay_style: Literal["constant", "linear", "cosine"] = Field(
        default="constant", description="shape of the decay"
    )
    lr_warmup_iters: int = Field(default=0, ge=0, le=10**9, description="optimizer steps of linear warm-up")
    weight_decay: float = Field(default=0.0, ge=0, le=1e6, description="decoupled weight decay")
    clip_grad: float = Field(default=1.0, gt=0, le=1e9, description="largest global gradient norm")
    max_skipped_updates: int = Field(
        default=3,
        ge=1,
        le=10**6,
        description="the run ends at so many steps in a row whose loss or gradient is not finite",
    )
    adam_beta1: float = Field(default=0.9, ge=0, lt=1, description="decay of the first moment")
    adam_beta2: float = Field(default=0.95, ge=0, lt=1, description="decay of the second moment")
    adam_eps: float = Field(default=1e-8, gt=0, le=1e6, description="Adam's epsilon")
    use_precision_aware_optimizer: bool = Field(
        default=False, description="TransformerEngine's Adam, which can keep its moments in a lower precision"
    )
    exp_avg_dtype: Precision = Field(default="float32", description="precision of Adam's first moment")
    exp_avg_sq_dtype: Precision = Field(default="float32", description="precision of Adam's second moment")
    optimizer_cpu_offload: bool = Field(
        default=False,
        description="optimizer state lives in main memory and the CPU updates it; with use_precision_aware_optimizer",
    )
    optimizer_offload_fraction: float = Field(default=1.0, gt=0, le=1, description="share of the state that does")


class Tuner(Section):
    """Which parameters are trained."""

    tuner_type: Literal["full", "lora"] = Field(default="full", description="all parameters, or low-rank adapters")
    lora_rank: int = Field(default=8, ge=1, le=65_536, description="rank of the adapters")
    lora_alpha: float = Field(default=32.0, gt=0, le=1e6, description="adapters are scaled by lora_alpha / lora_rank")
    lora_dropout: float = Field(default=0.0, ge=0, lt=1, description="dropout on the input of the adapters")
    target_modules: list[str] = Field(
        default=["all-linear"],
        min_length=1,
        description="layers with adapters, by Hugging Face's or Megatron's names",
    )
    use_rslora: bool = Field(default=False, description="scale by lora_alpha / sqrt(lora_rank) (arXiv 2312.03732)")
    freeze_parameters_regex: str | None = Field(
        default=None, min_length=1, description="parameters (Hugging Face names) that are not trained"
    )


class Checkpoint(Section):
    """What is saved and when."""

    save_steps: int | None = Field(
        default=None, ge=1, le=10**9, description="steps between checkpoints; absent: only at the end"
    )
    save_total_limit: int | None = Field(
        default=None, ge=1, le=10**6, description="newest checkpoints that are kept; absent: all"
    )
    save_last: bool = Field(default=True, description="save a checkpoint when the last step is done")
    export: bool = Field(default=True, description="write a Hugging Face folder at the end")
    reshardable: bool = Field(
        default=False, description="save the distributed optimizer so that other layouts can load it; slower"
    )


class Evaluation(Section):
    """Greedy evaluation on held-out rows."""

    eval_steps: int | None = Field(
        default=None, ge=1, le=10**9, description="steps between evaluations; absent: before and after only"
    )


_Step = Annotated[int, Field(ge=1, le=10**9)]
_Rank = Annotated[int, Field(ge=0, lt=MOST_RANKS)]


class Logging(Section):
    """What is recorded besides metrics.jsonl."""

    report_to: list[Literal["tensorboard", "wandb", "swanlab"]] = Field(
        default=["tensorboard"], description="where metrics go besides metrics.jsonl; [] for nowhere"
    )
    report_offline: bool = Field(
        default=False, description="wandb and SwanLab write files only, for `wandb sync` and `swanlab sync`"
    )
    wandb_project: str = Field(default="grpo-hpc", min_length=1, description="project in wandb")
    wandb_exp_name: str | None = Field(default=None, min_length=1, description="name in wandb; absent: the run's")
    swanlab_project: str = Field(default="grpo-hpc", min_length=1, description="project in SwanLab")
    swanlab_exp_name: str | None = Field(default=None, min_length=1, description="name in SwanLab; absent: the run's")
    log_completions: bool = Field(default=True, description="write every completion to the folder completions/")
    log_token_values: int = Field(
        default=16,
        ge=0,
        le=10**6,
        description="completions of each rollout in which the log-probability of every token is written down, too",
    )
    profile_steps: Annotated[list[_Step], Field(min_length=2, max_length=2)] | None = Field(
        default=None,
        description="first and last optimizer step of which torch records a profile into the folder profile/",
    )
    profile_ranks: Annotated[list[_Rank], Field(min_length=1, max_length=64)] = Field(
        default=[0], description="ranks that are profiled"
    )
    prometheus_port: int | None = Field(
        default=None,
        ge=1024,
        le=65535,
        description="port on which the first rank answers Prometheus, who needs the key in the file prometheus_key; "
        "absent: none",
    )
    prometheus_host: str = Field(
        default="127.0.0.1", min_length=1, description="address that the port is on; by default this node's alone"
    )


class Cluster(Section):
    """Where the run is started, and how it is kept alive. What is absent is taken from the cluster's profile."""

    profile: SitePath = Field(
        default="local", min_length=1, description="cluster: a profile's name (`grpo-hpc cluster list`), or its file"
    )
    executor: Literal["local", "slurm", "submitit"] | None = Field(default=None, description="who starts the processes")
    runtime: Literal["none", "apptainer", "docker", "podman", "pyxis"] | None = Field(
        default=None, description="container runtime that the processes run in"
    )
    image: SitePath | None = Field(default=None, min_length=1, description="container image: a SIF file, or its name")
    time_limit: WallTime | None = Field(
        default=None,
        description="wall time of one job, as in 30:00 (minutes), 12:00:00 or 1-00:00:00",
    )
    max_failures: int = Field(
        default=3,
        ge=0,
        le=10**6,
        description="failed starts in a row, without a new checkpoint, after which none is made; 0 is like 1",
    )


class RunConfig(Section):
    """One run, fully described. Made by :func:`grpo_hpc.config.load_run`, which also checks the rules between keys."""

    name: Annotated[
        str,
        matching(
            r"[A-Za-z0-9][A-Za-z0-9._-]*", "may hold letters, digits and . _ -, and begins with a letter or digit"
        ),
    ] = Field(description="name of the run and of its folder")
    output_dir: SitePath = Field(default="runs", min_length=1, description="folder that holds the run directories")
    seed: int = Field(
        default=42, ge=0, lt=2**31, description="seed of the data order, the sampling and the initialisation"
    )
    model: Model
    data: Data
    resources: Resources = Resources()
    parallel: Parallel = Parallel()
    moe: Moe = Moe()
    batch: Batch = Batch()
    rollout: Rollout = Rollout()
    algorithm: Algorithm = Algorithm()
    rewards: Rewards
    optimizer: Optimizer = Optimizer()
    tuner: Tuner = Tuner()
    checkpoint: Checkpoint = Checkpoint()
    evaluation: Evaluation = Evaluation()
    logging: Logging = Logging()
    cluster: Cluster = Cluster()

    @property
    def inputs(self) -> list[str]:
        """Files and folders that the run reads."""
        own = [self.model.path, self.data.train, self.data.eval]
        return list(dict.fromkeys([path for path in own if path] + self.rollout.files + self.rewards.files))


def _sections() -> dict[str, type[Section]]:
    annotations = {name: field.annotation for name, field in RunConfig.model_fields.items()}
    return {k: v for k, v in annotations.items() if isinstance(v, type) and issubclass(v, Section)}


SECTIONS: dict[str, type[Section]] = _sections()
TOP_LEVEL: tuple[str, ...] = tuple(name for name in RunConfig.model_fields if name not in SECTIONS)
SECTION_OF: dict[str, str] = {key: name for name, model in SECTIONS.items() for key in model.model_fields}
"""Section of every key that is not at the top level."""
