"""Where the trainer runs: the only module that knows CUDA from CPU.

Megatron-Core is written for CUDA. On a CPU the same program runs through two small adaptations, both undone
nowhere else: names of `torch.cuda` that Megatron calls unconditionally are replaced once per process
(:func:`_replace_cuda_names`), and inside :meth:`Platform.megatron` every ``device="cuda"`` argument means the CPU.
vLLM's CPU build runs outside that context and sees an ordinary torch.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch.overrides import TorchFunctionMode

LayerSpecName = Literal["transformer_engine", "local"]


@dataclass(frozen=True)
class Platform:
    """A device and what Megatron and vLLM must know about it.

    Attributes:
        device: where parameters and batches live.
        backend: torch.distributed backend.
        layer_spec: Megatron layer specification; parameter names depend on it.
    """

    device: torch.device
    backend: str
    layer_spec: LayerSpecName

    @property
    def is_cuda(self) -> bool:
        return self.device.type == "cuda"

    def init_distributed(self, timeout_minutes: float = 30.0) -> None:
        """Join the process group that torchrun describes in the environment.

        The group is not bound to the device: torch would then open a communicator for every process group that Megatron
        and vLLM make, at 0.3 GiB each. Most of them have one rank and never speak; together they took 10 GiB.
        """
        from datetime import timedelta

        dist.init_process_group(self.backend, timeout=timedelta(minutes=timeout_minutes))

    @contextlib.contextmanager
    def megatron(self) -> Iterator[None]:
        """Everything that calls Megatron-Core runs inside this context."""
        if self.is_cuda:
            yield
        else:
            with _CudaMeansCpu():
                yield

    def transformer_options(self) -> dict[str, Any]:
        """Options of Megatron's TransformerConfig that follow from the device."""
        if self.is_cuda:
            return {
                "apply_rope_fusion": True,
                "bias_activation_fusion": True,  # of gate and up; there need not be a bias
                "masked_softmax_fusion": False,
                "moe_permute_fusion": True,
            }
        return {
            "use_cpu_initialization": True,
            "apply_rope_fusion": False,
            "bias_activation_fusion": False,
            "masked_softmax_fusion": False,
            "persist_layer_norm": False,
        }

    def engine_options(self) -> dict[str, Any]:
        """vLLM engine arguments that follow from the device; call before vLLM is imported (sets its environment)."""
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        if self.is_cuda:
            return {}
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
        return {"enforce_eager": True}

    def synchronize(self) -> None:
        """Wait for the device, so that a clock read next is honest."""
        if self.is_cuda:
            torch.cuda.synchronize(self.device)

    def empty_cache(self) -> None:
        """Give cached device memory back, for the other tenant of the same device."""
        if self.is_cuda:
            torch.cuda.empty_cache()

    def peak_bytes(self) -> int:
        """Most bytes that torch has reserved since :meth:`forget_peak`; on a CPU the process's largest resident set."""
        if self.is_cuda:
            return torch.cuda.max_memory_reserved(self.device)
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    def forget_peak(self) -> None:
        """Count peaks anew from here, which a CPU cannot."""
        if self.is_cuda:
            torch.cuda.reset_peak_memory_stats(self.device)

    def bytes_outside_torch(self) -> int:
        """Bytes in use on the device beyond what torch has reserved: context, NCCL, and whoever else is there.

        Below zero while much of what torch counts as reserved is unmapped, as the memory of a sleeping engine is.
        """
        if not self.is_cuda:
            return 0
        free, total = torch.cuda.mem_get_info(self.device)
        return total - free - torch.cuda.memory_reserved(self.device)


def make_platform(device: Literal["cpu", "cuda"]) -> Platform:
    """The platform for this process; on CUDA the local rank's device is made current."""
    if device == "cuda":
        current = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(current)
        return Platform(current, "nccl", "transformer_engine")
    _replace_cuda_names()
    return Platform(torch.device("cpu"), "gloo", "local")


class _CudaMeansCpu(TorchFunctionMode):
    """Reads every CUDA device argument as the CPU, and names CPU tensor types as Megatron's type checks expect."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.Tensor.cuda:
            return args[0]
        if func is torch.Tensor.type and len(args) == 1 and not kwargs:
            return func(args[0]).replace("torch.", "torch.cuda.")
        if func is torch.Tensor.to and len(args) > 1 and _names_cuda(args[1]):
            args = (args[0], "cpu", *args[2:])
        kwargs.pop("pin_memory", None)  # asks for memory that a GPU reads faster
        if _names_cuda(kwargs.get("device")):
            kwargs["device"] = "cpu"
        return func(*args, **kwargs)


def _names_cuda(device: object) -> bool:
    if isinstance(device, torch.device):
        return device.type == "cuda"
    return isinstance(device, str) and device.startswith("cuda")


class _NoStream:
    """Stands for a CUDA stream or event where there is nothing to order."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def wait_stream(self, other: Any) -> None: ...
    def wait_event(self, event: Any) -> None: ...
    def synchronize(self) -> None: ...
    def record(self, stream: Any = None) -> None: ...
    def record_event(self, event: Any = None) -> _NoStream:
        return self

    def wait(self, stream: Any = None) -> None: ...


def _replace_cuda_names() -> None:
    """Give the `torch.cuda` functions that Megatron calls unconditionally their CPU meaning."""

    def get_state(device: Any = None) -> torch.Tensor:
        return torch.get_rng_state()

    def set_state(state: torch.Tensor, device: Any = None) -> None:
        torch.set_rng_state(state)

    replaced: dict[str, Any] = {
        "current_device": lambda: torch.device("cpu"),
        "set_device": lambda device: None,
        "synchronize": lambda device=None: None,
        "empty_cache": lambda: None,
        "manual_seed": torch.manual_seed,
        "get_rng_state": get_state,
        "set_rng_state": set_state,
        "default_generators": {torch.device("cpu"): torch.default_generator},
        "Stream": _NoStream,
        "Event": _NoStream,
        "stream": lambda stream: contextlib.nullcontext(),
        "current_stream": lambda device=None: _NoStream(),
        "default_stream": lambda device=None: _NoStream(),
    }
    for name, value in replaced.items():
        setattr(torch.cuda, name, value)
    for name in ("get_rng_state", "set_rng_state"):
        setattr(torch.cuda.random, name, replaced[name])
    # behind this: Megatron takes some of these names when it is loaded
    from grpo_hpc.models.patches import stand_in_for_cuda

    stand_in_for_cuda()
