"""What the trainer sent and what the engine holds, compared by a hash of sampled tensors at every sync.

The hash of a tensor is the sum of a mixing function over its elements, modulo 2^64. A sum does not ask in which order
elements lie or on which rank: parts that an engine joins (query, key and value) or cuts over tensor-parallel ranks add
up, and what it pads with zeros adds nothing. One wrong bit changes it; elements that only change places do not, which
is what the log-probability canary at the start of a run is for.

Compared are matrices, embeddings, norms and experts, not biases (a CPU engine keeps those in another precision), and
query, key and value only where the engine does not repeat key heads on several ranks.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from grpo_hpc.algo.mixing import mix
from grpo_hpc.errors import RolloutError

SAMPLED = 8
"""Tensors that are compared at a sync, chosen anew each time."""

_EXPERT = re.compile(r"^(?P<at>.+\.experts)\.(?P<number>\d+)\.(?P<part>\w+)\.weight$")
_EXPERT_PARTS = {"gate_proj": "w13", "up_proj": "w13", "w1": "w13", "w3": "w13", "down_proj": "w2", "w2": "w2"}
_TINY = 1e-30  # a CPU's kernels may flush smaller numbers to zero
_CHUNK = 1 << 24


def tensor_hash(tensor: Tensor) -> Tensor:
    """Order-independent hash of the elements, in the tensor's own precision; zeros do not count.

    Returns:
        int64, modulo 2^64, on the tensor's device: nobody waits for it before it is looked at.
    """
    total = torch.zeros((), dtype=torch.int64, device=tensor.device)
    for part in tensor.detach().flatten().split(_CHUNK):
        if part.element_size() == 2:
            total += _mixed(part.dtype, part.device)[part.contiguous().view(torch.int16).int()].sum()
        else:
            total += _mix_bits(part).sum()
    return total


def _mix_bits(values: Tensor) -> Tensor:
    values = torch.where(values.abs() < _TINY, torch.zeros_like(values), values)
    return mix(values.contiguous().view({2: torch.int16, 4: torch.int32}[values.element_size()]).long())


@cache
def _mixed(dtype: torch.dtype, device: torch.device) -> Tensor:
    """:func:`_mix_bits` of all numbers of 16 bits, by their bits; negative ones, as Python has it, from the end.

    To look a number up moves a fifth of the memory that mixing it takes.
    """
    bits = torch.cat([torch.arange(1 << 15), torch.arange(-1 << 15, 0)]).to(torch.int16)
    return _mix_bits(bits.view(dtype)).to(device)


@dataclass
class Sent:
    """Hashes of sampled tensors while they pass by on their way to the engine.

    Attributes:
        sampled: the engine's names of the tensors to compare.
        target: the engine's name of the tensor that a Hugging Face tensor becomes a part of.
        hashes: by the engine's name.
        bytes: of everything that passed.
    """

    sampled: frozenset[str]
    target: Callable[[str], str]
    hashes: dict[str, Tensor] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    bytes: int = 0

    def watch(self, tensors: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """``tensors``, unchanged."""
        for name, tensor in tensors:
            self.bytes += tensor.numel() * tensor.element_size()
            target = self.target(name)
            if target in self.sampled:
                self.hashes[target] = self.hashes.get(target, 0) + tensor_hash(tensor)
                self.sizes[target] = self.sizes.get(target, 0) + tensor.numel()
            yield name, tensor


class EngineTensors:
    """The weights inside a vLLM model, by name; those of an expert by ``...w13.<number>`` and ``...w2.<number>``.

    It stays true while weights are replaced: names are looked up in modules when they are read.

    Args:
        synced: Hugging Face names of what is sent; what else the model has is not compared.
    """

    def __init__(self, model: Any, synced: Iterable[str]) -> None:
        self._modules = dict(model.named_modules())
        self._mapper = getattr(model, "hf_to_vllm_mapper", None)
        self._packed = {part: whole for whole, parts in _packed_modules(model).items() for part in parts}
        self._own_names: dict[str, str] = {}
        self._synced = list(synced)

    def name(self, hf_name: str) -> str:
        """Where the engine keeps a Hugging Face tensor; a name that it does not have means it cannot be compared."""
        if hf_name not in self._own_names:
            self._own_names[hf_name] = self._own_name(hf_name)
        return self._own_names[hf_name]

    def _own_name(self, hf_name: str) -> str:
        if self._mapper is not None:
            hf_name = next(iter(self._mapper.apply_list([hf_name])), hf_name)
        if expert := _EXPERT.match(hf_name):
            part = _EXPERT_PARTS.get(expert["part"], "")
            return f"{expert['at']}.{part}.{expert['number']}"
        at, dot, leaf = hf_name.removesuffix(".weight").rpartition(".")
        return f"{at}{dot}{self._packed.get(leaf, leaf)}.weight"

    @cached_property
    def names(self) -> list[str]:
        """Everything that is sent and can be compared, in a fixed order."""
        return sorted({self.name(hf_name) for hf_name in self._synced} & set(self._readable()))

    def _readable(self) -> Iterator[str]:
        for path, module in self._modules.items():
            if _weight(module) is not None and not _repeats_heads(module):
                yield f"{path}.weight"
            experts = getattr(module, "w13_weight", None)
            if isinstance(experts, Tensor) and getattr(module, "w2_weight", None) is not None:
                at = path.removesuffix(".routed_experts")
                yield from (f"{at}.{part}.{n}" for n in range(len(experts)) for part in ("w13", "w2"))

    def read(self, name: str) -> Tensor:
        """This rank's part of a tensor."""
        at, _, leaf = name.rpartition(".")
        if leaf == "weight":
            return _read_weight(self._modules[at])
        path, _, part = at.rpartition(".")
        module = self._modules.get(f"{path}.routed_experts") or self._modules[path]
        whole: Tensor = getattr(module, f"{part}_weight")
        return whole[int(leaf)]


def sample(held: EngineTensors, seed: int) -> Sent:
    """A record of what is about to be sent to the engine, for tensors chosen by ``seed``."""
    chosen = random.Random(seed).sample(held.names, min(SAMPLED, len(held.names)))
    return Sent(frozenset(chosen), held.name)


def compare(held: EngineTensors, sent: Sent, group: dist.ProcessGroup) -> int:
    """How many tensors were found equal; collective over ``group``, the ranks that share the engine.

    Raises:
        RolloutError: the engine holds something else than it was sent.
    """
    if not sent.hashes:
        return 0
    names = sorted(sent.hashes)
    parts = [held.read(name) for name in names]
    found = torch.stack([tensor_hash(part) for part in parts]).cpu()
    shared = torch.tensor([part.numel() < sent.sizes[name] for part, name in zip(parts, names, strict=True)])
    summed = found.clone()
    dist.all_reduce(summed, group=group)
    found = torch.where(shared, summed, found)  # what is not shared every rank holds whole
    wanted = torch.stack([sent.hashes[name] for name in names]).cpu()
    wrong = [
        f"{name} (sent {_hex(want)}, holds {_hex(have)})"
        for name, want, have in zip(names, wanted.tolist(), found.tolist(), strict=True)
        if want != have
    ]
    if wrong:
        raise RolloutError(
            f"after a weight sync the engine holds other weights than it was sent: {len(wrong)} of {len(sent.hashes)} "
            f"sampled tensors differ: {'; '.join(wrong[:3])}",
            "Likely causes: the engine did not load them (see its log), something wrote into its weights, or this "
            "version of vLLM stores the layer in another form. Sampling would be off-policy without notice.",
        )
    return len(sent.hashes)


def _hex(number: int) -> str:
    return f"{number % (1 << 64):016x}"


def _packed_modules(model: Any) -> dict[str, list[str]]:
    return dict(getattr(model, "packed_modules_mapping", {}))


def _weight(module: Any) -> Tensor | None:
    """The module's own weight matrix or norm; None for what holds none or a convolution."""
    own = module._parameters.get("weight")
    return own if isinstance(own, Tensor) and own.dim() <= 2 else None


def _repeats_heads(module: Any) -> bool:
    return getattr(module, "num_kv_head_replicas", 1) > 1


@torch.no_grad()
def _read_weight(module: Any) -> Tensor:
    """The weight; where a CPU engine has only a packed copy of it, what the layer makes of the unit vectors."""
    weight: Tensor = module.weight
    if weight.numel():
        return weight
    inputs = getattr(module, "input_size_per_partition", module.input_size)
    columns = torch.eye(inputs, dtype=weight.dtype, device=weight.device)
    return torch.cat([module.quant_method.apply(module, rows) for rows in columns.split(256)])
