"""What a rollout asks of an inference engine, and vLLM inside the trainer's processes."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from grpo_hpc.config.batch import sequences_of
from grpo_hpc.errors import ConfigError, RolloutError
from grpo_hpc.models.families import synced_names
from grpo_hpc.models.families.read_shape import read_shape
from grpo_hpc.rollout.digest import EngineTensors, compare, sample
from grpo_hpc.rollout.engine_arguments import unknown_arguments
from grpo_hpc.rollout.loading import Loading
from grpo_hpc.rollout.precision import for_engine
from grpo_hpc.rollout.reload_warnings import expect_no_weights
from grpo_hpc.rollout.residency import Part

if TYPE_CHECKING:
    from grpo_hpc.config import RunConfig
    from grpo_hpc.config.sections import Rollout
    from grpo_hpc.train.megatron.platform import Platform


# flat: a few lists for each completion, where vLLM would otherwise make two objects for every token
RETURNED: dict[str, Any] = {"logprobs": 0, "flat_logprobs": True, "detokenize": False}
"""What vLLM is asked to say of every token."""

WITHOUT_READING: dict[str, Any] = {"load_format": "dummy", "language_model_only": True}
"""How vLLM starts: the first weight sync brings every weight. A vision tower, which no sync brings, it is not
given: rows are text."""


@dataclass(frozen=True)
class Request:
    """One completion wanted. Its seed makes it independent of what else is in the batch.

    Attributes:
        prompt_tokens: int32 [T], what is continued.
        options: how, as :func:`sampling` says.
    """

    prompt_tokens: np.ndarray
    seed: int
    options: Mapping[str, Any]


@dataclass(frozen=True)
class Completion:
    """One completion as the engine returned it.

    Attributes:
        tokens, logprobs: int32 and float32 [n].
        version: optimizer steps behind the weights that it was sampled with.
        routing: experts of all tokens that were read, uint8 or int16 [at least T - 1, L * k]; None if not asked for.
    """

    tokens: np.ndarray
    logprobs: np.ndarray
    finish_reason: str
    version: int = 0
    routing: np.ndarray | None = None


@dataclass(frozen=True)
class Synced:
    """What a weight sync handed over.

    Attributes:
        bytes: of all tensors, in the engine's precision; each replica gets as many.
        compared: tensors whose values inside the engine were compared with what was sent.
    """

    bytes: int
    compared: int


class Engine(Protocol):
    """An inference engine holding the policy's weights. It works as long as it is stepped.

    ``version`` is the number of optimizer steps behind the weights it holds; None until weights were synchronised,
    and then it must not be asked to sample.
    """

    version: int | None

    @property
    def fed_by_every_rank(self) -> bool:
        """Whether every rank must have the tensors of a weight sync, or the first alone."""

    @property
    def max_model_len(self) -> int:
        """Most tokens of prompt and completion together."""

    def submit(self, name: str, request: Request) -> None:
        """Begin with one completion; no other that has not ended has its name.

        Raises:
            RolloutError: the engine holds no weights of this run yet.
        """

    def abort(self, name: str) -> None:
        """Give up one completion; it never ends then. One that has ended already may be named."""

    def step(self) -> list[tuple[str, Completion]]:
        """Work for a moment: completions that have ended, in the same order on all ranks of a replica."""

    def forget(self) -> None:
        """Drop cached keys and values: what comes next is sampled as if nothing had been asked before."""

    def load_weights(self, tensors: Iterator[tuple[str, Tensor]], version: int) -> Synced: ...

    def sleep(self) -> None: ...

    def wake(self, part: Part) -> None: ...

    def close(self) -> None: ...


def complete(engine: Engine, requests: Sequence[Request]) -> list[Completion]:
    """All of ``requests`` and nothing else, in their order; all ranks of a replica ask for the same."""
    for number, request in enumerate(requests):
        engine.submit(str(number), request)
    found: dict[str, Completion] = {}
    while len(found) < len(requests):
        found |= dict(engine.step())
    return [found[str(number)] for number in range(len(requests))]


class ColocateEngine:
    """vLLM in the trainer's own process, on the same device.

    ``vllm_tensor_parallel_size`` consecutive ranks form one replica; the ranks of a replica are given the same
    requests and return the same completions.

    Args:
        replayed_layers: numbers of the layers with experts whose routing every completion must bring with it.
    """

    fed_by_every_rank = True

    def __init__(self, cfg: RunConfig, platform: Platform, replayed_layers: Sequence[int] = ()) -> None:
        r, shape = cfg.rollout, read_shape(cfg.model.path)
        options = platform.engine_options() | r.engine_memory(cfg.resources.device)
        options |= {"enforce_eager": True} if r.vllm_enforce_eager else {}
        options |= {"max_num_seqs": sequences_of(cfg)}  # vLLM captures CUDA graphs by it
        if replayed_layers:
            os.environ["VLLM_USE_V2_MODEL_RUNNER"] = str(int(_second_runner_returns_experts()))
            options |= {"enable_return_routed_experts": True}
        if shape.vision is not None and find_spec("torchvision") is None:
            raise RolloutError(
                f"vLLM needs torchvision for {shape.family}, and it is not installed here",
                "Install the release that belongs to this torch; `make setup` does it for the CPU set.",
            )
        options |= WITHOUT_READING | r.vllm_engine_kwargs
        if problem := unknown_arguments(r.vllm_engine_kwargs):
            raise ConfigError(problem)
        self._replayed_layers = list(replayed_layers)
        from vllm import LLM  # takes seconds, and reads its environment on import

        self._cfg, self._seed, self._device = r, cfg.seed, platform.device
        self.version: int | None = None
        self._llm = LLM(
            model=cfg.model.path,
            dtype=r.vllm_dtype,
            tensor_parallel_size=r.vllm_tensor_parallel_size,
            distributed_executor_backend="external_launcher",
            max_model_len=r.vllm_max_model_len,
            logprobs_mode="processed_logprobs",  # of the distribution that is sampled from, temperature included
            seed=cfg.seed + int(os.environ["RANK"]) // r.vllm_tensor_parallel_size,
            enable_sleep_mode=r.sleep_level > 0,
            disable_log_stats=True,
            **options,
        )
        self._vllm = self._llm.llm_engine
        self._held: EngineTensors = self._llm.apply_model(partial(EngineTensors, synced=synced_names(shape)))[0]
        self._llm.apply_model(expect_no_weights)
        self._loading = Loading()
        self._cached = False  # whether there may be keys and values under these weights
        self._in_place: bool = platform.is_cuda and self._llm.apply_model(loads_in_place)[0]

    @property
    def max_model_len(self) -> int:
        """Most tokens of prompt and completion together."""
        return self._vllm.model_config.max_model_len

    def submit(self, name: str, request: Request) -> None:
        """Begin with one completion.

        Raises:
            RolloutError: the engine holds no weights of this run yet, or the request is none that it can take.
        """
        if self.version is None:
            raise RolloutError("the inference engine was asked to sample before the policy's weights were synchronised")
        from vllm import TokensPrompt

        self._cached = True
        prompt = TokensPrompt(prompt_token_ids=np.asarray(request.prompt_tokens).tolist())
        try:
            self._vllm.add_request(name, prompt, sampling_params(request.seed, request.options))
        except ValueError as error:
            raise RolloutError(f"vLLM refused a request: {error}") from None

    def abort(self, name: str) -> None:
        """Give up one completion."""
        self._vllm.abort_request([name])  # one by one: vLLM walks a set of them, in another order in every process

    def step(self) -> list[tuple[str, Completion]]:
        """One step of vLLM: completions that have ended with it."""
        ended: list[Any] = [output for output in self._vllm.step() if output.finished]
        version, layers = self.version or 0, self._replayed_layers
        return [(output.request_id, completion_of(output.outputs[0], version, layers)) for output in ended]

    def load_weights(self, tensors: Iterator[tuple[str, Tensor]], version: int) -> Synced:
        """Replace all weights by ``tensors`` (Hugging Face names) and forget what was cached under the old ones.

        Raises:
            RolloutError: a sample of the engine's weights differs from what was sent.
        """
        self.version = None
        dtype: Any = self._vllm.model_config.dtype
        generator = torch.Generator(self._device).manual_seed(self._seed + version)  # the same on every rank
        sent = sample(self._held, self._seed + version)
        converted = sent.watch(for_engine(tensors, dtype, generator))
        self._hand_over(converted)
        for _ in converted:  # the stream is collective: every rank must reach its end
            pass
        self._llm.apply_model(refresh_tied_head)
        self.forget()
        compared = compare(self._held, sent, ranks_of_one_engine())
        self.version = version
        return Synced(sent.bytes, compared)

    def _hand_over(self, tensors: Iterator[tuple[str, Tensor]]) -> None:
        """Straight into the live weights where that is all there is to do, else layer by layer into new ones that vLLM
        works on and then copies, with many times the host's work and twice the copies."""
        if self._in_place:
            self._llm.apply_model(partial(self._loading.load, tensors=tensors))
        else:
            self._llm.apply_model(forget_packed_experts)
            self._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": tensors})

    def forget(self) -> None:
        """Drop cached keys and values."""
        if self._cached:
            self._llm.reset_prefix_cache()  # a loop over all blocks, of which there are tens of thousands
        self._cached = False

    def sleep(self) -> None:
        """Free the device: weights wait in host memory (``sleep_level`` 1) or are dropped, the KV cache always is."""
        self._llm.sleep(level=self._cfg.sleep_level)
        self._cached = False  # vLLM sees to that
        if self._cfg.sleep_level == 2:
            self.version = None

    def wake(self, part: Part) -> None:
        """Take back the memory of one part; after a sleep of level 2 weights are undefined until they are loaded."""
        self._llm.wake_up(tags=[{Part.ENGINE_WEIGHTS: "weights", Part.ENGINE_CACHE: "kv_cache"}[part]])

    def close(self) -> None:
        """Give back memory and process groups; while the trainer's own groups still stand."""
        self.version = None
        self._vllm.engine_core.shutdown()


def whole_distribution(r: Rollout, tokens: int) -> dict[str, Any]:
    """At most ``tokens`` tokens, without ``top_p``, ``top_k`` and whatever else chooses among them."""
    return {"max_tokens": tokens, "temperature": r.temperature}


def sampling(r: Rollout, greedy: bool) -> dict[str, Any]:
    """How a rollout is sampled, or an evaluation, in vLLM's words; what ends a completion holds for both."""
    told: dict[str, Any] = {"max_tokens": r.max_completion_length}
    if r.stop:
        told |= {"stop": r.stop, "detokenize": True}  # vLLM looks for them in the text
    if r.stop_token_ids:
        told |= {"stop_token_ids": r.stop_token_ids}
    if r.structured_outputs_regex is not None:
        told |= {"regex": r.structured_outputs_regex}
    if greedy:
        return told | {"temperature": 0.0}
    told |= {"temperature": r.temperature, "top_p": r.top_p, "top_k": r.top_k, "min_p": r.min_p}
    penalties = ("repetition_penalty", "presence_penalty", "frequency_penalty")
    return told | {name: getattr(r, name) for name in penalties}


def sampling_params(seed: int, options: Mapping[str, Any]) -> Any:
    """vLLM's ``SamplingParams`` of one completion.

    Args:
        options: what :func:`sampling` says, or a part of it.
    """
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

    regex = options.get("regex")
    told = {name: value for name, value in options.items() if name != "regex"}
    structured = {} if regex is None else {"structured_outputs": StructuredOutputsParams(regex=regex)}
    ends = {"output_kind": RequestOutputKind.FINAL_ONLY}
    return SamplingParams(seed=seed, **(RETURNED | ends | told | structured))


def forget_packed_experts(model: Any) -> None:
    """Let vLLM pack experts anew when it has reloaded them.

    On a CPU it computes with them in an order of its own. It makes that order along with the kernel, and when a kernel
    is there already it leaves the weights as they were loaded: rollouts would come from scrambled experts.
    """
    for module in model.modules():
        method: Any = getattr(module, "quant_method", None)
        if getattr(getattr(method, "unquantized_backend", None), "name", "") == "CPU":
            method.moe_kernel = None


def loads_in_place(model: Any) -> bool:
    """Whether a vLLM ``model`` on a GPU computes with its weights just as its loaders write them.

    Quantised layers do not, nor latent attention, which multiplies matrices when all are there, nor experts of kernels
    that want another order. What is not known here counts among them.
    """
    return all(_computes_as_loaded(module) for module in model.modules())


def _computes_as_loaded(module: Any) -> bool:
    method = getattr(module, "quant_method", None)
    kind = type(method).__name__
    if kind == "UnquantizedFusedMoEMethod":
        return getattr(getattr(method, "unquantized_backend", None), "name", "") == "TRITON"
    known = method is None or kind in ("UnquantizedLinearMethod", "UnquantizedEmbeddingMethod")
    return known and type(module).__name__ != "MLAAttention"


def language_model(model: Any) -> Any:
    """The part of a vLLM ``model`` that reads and writes text; all of it, where there is no other."""
    return model.get_language_model() if hasattr(model, "get_language_model") else model


def _second_runner_returns_experts() -> bool:
    """Of vLLM's two model runners one returns experts: the first until it got a connector for them, then the second."""
    return find_spec("vllm.config.aux_output") is not None


def ranks_of_one_engine() -> dist.ProcessGroup:
    from vllm.distributed.parallel_state import get_tp_group

    group: dist.ProcessGroup = get_tp_group().cpu_group
    return group


def refresh_tied_head(model: Any) -> None:
    """Make a tied output matrix on a CPU follow its embedding.

    vLLM reloads the layers that it is sent tensors for. A tied output layer is sent none: its weight is the
    embedding's, but on a CPU it multiplies by a packed copy made when the model was loaded, which this makes anew.
    """
    head = language_model(model).lm_head
    if head.weight.device.type == "cpu":
        head.quant_method.process_weights_after_loading(head)


def completion_of(output: Any, version: int, replayed_layers: list[int]) -> Completion:
    tokens = np.array(output.token_ids, np.int32)
    logprobs = np.array(output.logprobs.logprobs, np.float32)[np.array(output.logprobs.start_indices, np.int64)]
    assert len(logprobs) == len(tokens)  # the sampled token's comes first of those of its place
    routing = routing_of(output.routed_experts, replayed_layers) if replayed_layers else None
    return Completion(tokens, logprobs, str(output.finish_reason), version, routing)


def routing_of(routed: Any, layers: list[int]) -> np.ndarray:
    """The experts of ``layers`` in vLLM's array [tokens that were read, all layers, k]: [tokens, L * k].

    Raises:
        RolloutError: vLLM gave none.
    """
    if routed is None:
        raise RolloutError(
            "vLLM returned no experts with a completion, and moe.router_replay_mode: R3 needs them",
            "Use R2, which replays the routing of the trainer's own pass.",
        )
    chosen = np.asarray(routed)[:, layers].reshape(len(routed), -1)
    return chosen.astype(np.uint8 if chosen.max(initial=0) < 256 else np.int16)
