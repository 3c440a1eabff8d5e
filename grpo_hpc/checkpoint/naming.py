"""Where a row of the weight map lies in a Megatron checkpoint, and how a parallel layout cuts it.

In Megatron's distributed format a parameter of all layers is one tensor [layers, ...], of all experts [layers, experts,
...]; when layers differ (dense ones before those with experts) each has its own. Tensor parallelism only decides how a
tensor is cut into chunks, and how many zero rows pad the vocabulary: so a checkpoint can be loaded in any layout.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from grpo_hpc.errors import CheckpointError
from grpo_hpc.models.families import weight_map
from grpo_hpc.models.layouts import Shard
from grpo_hpc.models.on_disk.stored import Size, Stored
from grpo_hpc.models.shape import ModelShape
from grpo_hpc.models.weight_map import EXPERT, LAYER, Rule

_EMBEDDING = "embedding.word_embeddings.weight"
# what a checkpoint may hold besides the model
_STATE = ("optimizer", "reference.", "chained_", "rng_state", "rerun_state", "opt_param_scheduler")


@dataclass(frozen=True)
class Parallel:
    """Sizes of the parallel axes that a checkpoint is cut for; with ``vpp`` a pipeline stage has that many parts."""

    tp: int = 1
    pp: int = 1
    ep: int = 1
    etp: int = 1
    vpp: int = 1

    def require(self, shape: ModelShape) -> None:
        """Refuse what Megatron could not load in this layout.

        Raises:
            CheckpointError: with the numbers, and the next size that would do.
        """
        for axis, size in asdict(self).items():
            if size < 1:
                raise CheckpointError(f"--{axis} {size} is not a positive number")
        if shape.layers < self.pp * self.vpp:
            raise CheckpointError(f"{shape.layers} layers cannot be put into {self.pp} stages of {self.vpp} parts")
        experts = shape.experts
        if experts is None and (self.ep > 1 or self.etp > 1):
            raise CheckpointError(f"--ep and --etp are for models with experts; {shape.family} has none here")
        if experts is not None and experts.count % self.ep:
            raise CheckpointError(f"{experts.count} experts cannot be split over ep {self.ep}")
        heads = f"{shape.heads} query heads and {shape.kv_heads} key/value heads"
        _require_split(heads, "tp", self.tp, lambda size: _heads_fit(shape, size))
        for rule in weight_map(shape):
            axis, size = ("etp", self.etp) if rule.experts else ("tp", self.tp)
            if rule.layout.axis is not None and rule.part not in ("embedding", "output"):  # those are padded
                total = rule.layout.shape()[rule.layout.axis] // rule.layout.stacked
                _require_split(f"{total} rows or columns of {rule.megatron}", axis, size, partial(_divides, total))

    def stage(self, layer: int, layers: int) -> int:
        """Pipeline rank of a layer; parts differ by at most one layer when they do not come out even."""
        parts = self.pp * self.vpp
        small, larger = divmod(layers, parts)
        border = larger * (small + 1)
        part = layer // (small + 1) if layer < border else larger + (layer - border) // small
        return part % self.pp

    def file(self, rule: Rule, layer: int, expert: int, rank: int, shape: ModelShape) -> str:
        """The file of the rank that holds a chunk: one for each pipeline stage and place in it."""
        places = max(self.tp, self.ep * self.etp)
        if rule.per_layer and rule.part != "vision":
            stage = self.stage(layer, shape.layers)
        else:
            stage = 0 if rule.part in ("embedding", "vision") else self.pp - 1
        place = expert // (rule.experts // self.ep) * self.etp + rank if rule.experts else rank
        return f"__{stage * places + place}_0.distcp"

    def shards(self, rule: Rule) -> list[Shard]:
        """The ranks among which a parameter is cut."""
        size = self.etp if rule.experts else self.tp
        return [Shard(rank, size) for rank in range(size if rule.layout.sharded else 1)]


def _heads_fit(shape: ModelShape, ranks: int) -> bool:
    """Megatron's rule: queries come out even, and so do keys over ranks or ranks over keys."""
    shared = shape.kv_heads % ranks == 0 or ranks % shape.kv_heads == 0
    return shape.heads % ranks == 0 and shared


def _divides(total: int, ranks: int) -> bool:
    return total % ranks == 0


def _require_split(what: str, axis: str, size: int, fits: Callable[[int], bool]) -> None:
    if not fits(size):
        smaller = next(n for n in range(size - 1, 0, -1) if fits(n))
        raise CheckpointError(
            f"{what} cannot be split over {axis} {size}", f"The next smaller size that does: {smaller}."
        )


@dataclass(frozen=True)
class Slot:
    """A matrix of a stored tensor: the tensor's name, the leading index, and the sizes of the leading dimensions."""

    key: str
    prefix: Size
    leading: Size


def is_uniform(shape: ModelShape) -> bool:
    """True when all layers have the same parameters, so that Megatron stacks them."""
    return not shape.moe_layers or len(shape.moe_layers) == shape.layers


def saved_names(rule: Rule, shape: ModelShape) -> tuple[str, ...]:
    return rule.saved_names(latent_attention=shape.mla is not None)


def slots(rule: Rule, shape: ModelShape, layer: int, expert: int, uniform: bool) -> Iterator[Slot]:
    """Where a parameter is saved: one place, or two where Megatron's layer specs disagree on a name."""
    experts, count = ((expert,), (rule.experts,)) if rule.experts else ((), ())
    for name in saved_names(rule, shape):
        if rule.part == "vision" or not rule.per_layer or not uniform:
            yield Slot(name.replace(LAYER, str(layer)), experts, count)
        else:
            yield Slot(name.replace(LAYER + ".", ""), (layer, *experts), (shape.layers, *count))


def find(
    tensors: dict[str, Stored], root: str, rule: Rule, shape: ModelShape, layer: int, expert: int
) -> list[tuple[Stored, Size]]:
    """Where a parameter is stored, and its leading index there, however the writer stacked layers and experts.

    It may be there twice, under names that the configuration takes for one.

    Raises:
        CheckpointError: it is nowhere, or has another shape than the configuration says.
    """
    tried, found = dict[str, None](), dict[tuple[str, Size], tuple[Stored, Size]]()
    for uniform in (True, False):
        for slot in slots(rule, shape, layer, expert, uniform):
            tried[slot.key] = None
            stored = tensors.get(root + slot.key)
            if stored is not None:
                _require_shape(stored, rule, slot)
                found[stored.name, slot.prefix] = stored, slot.prefix
    if not found and not rule.repeats:
        raise CheckpointError(f"the checkpoint has no tensor {' or '.join(tried)}")
    return list(found.values())


def _require_shape(stored: Stored, rule: Rule, slot: Slot) -> None:
    wanted = (*slot.leading, *rule.layout.shape())
    rows = len(slot.leading)
    fits = stored.shape == wanted
    if rule.part in ("embedding", "output"):  # padded for whatever layout wrote it
        fits = stored.shape[:rows] + stored.shape[rows + 1 :] == wanted[:rows] + wanted[rows + 1 :]
        fits = fits and stored.shape[rows] >= wanted[rows]
    if not fits:
        raise CheckpointError(f"{stored.name!r} has the shape {stored.shape}, but the configuration asks for {wanted}")


def root_of(tensors: dict[str, Stored]) -> str:
    """What stands before the names of the language model (``language_model.`` in some multimodal checkpoints).

    Raises:
        CheckpointError: no tensor is an embedding.
    """
    found = [name for name in tensors if name.endswith(_EMBEDDING) and not name.startswith(_STATE)]
    if len(found) != 1:
        raise CheckpointError(f"the checkpoint has {len(found)} tensors named {_EMBEDDING}, so it is no language model")
    return found[0].removesuffix(_EMBEDDING)


def is_state(name: str) -> bool:
    """True for what a checkpoint holds besides the model."""
    return name.startswith(_STATE)


def model_names(tensors: dict[str, Stored]) -> set[str]:
    """The tensors that are the model's own, not an optimizer's."""
    return {name for name in tensors if not name.startswith(_STATE)}


def layers_and_experts(rule: Rule) -> Iterator[tuple[int, int]]:
    """Every layer and expert that has the parameter."""
    for layer in rule.layers or (0,):
        for expert in range(rule.experts or 1):
            yield layer, expert


def extra_states(shape: ModelShape) -> list[str]:
    """Names under which Megatron's and TransformerEngine's layers look for extra state; without FP8 it is empty."""
    names: list[str] = []
    for rule in weight_map(shape):
        if rule.part == "vision":
            continue
        modules = {
            name.rpartition(".")[0] for name in (*saved_names(rule, shape), rule.megatron if not rule.experts else "")
        }
        if rule.part == "attention":
            modules.add("decoder.layers.{i}.self_attention.core_attention")
        for module in sorted(modules - {""}):
            names += _states(module, rule, shape)
    return list(dict.fromkeys(names))


def _states(module: str, rule: Rule, shape: ModelShape) -> Iterator[str]:
    for layer, expert in layers_and_experts(rule):
        at: list[Any] = [(expert, rule.experts)] if rule.experts else []
        if rule.per_layer and is_uniform(shape):
            at.insert(0, (layer, shape.layers))
        at = at or [(0, 1)]
        name = module.replace(LAYER + ".", "" if is_uniform(shape) else f"{layer}.").replace(EXPERT, str(expert))
        offset, size = (".".join(str(pair[k]) for pair in at) for k in (0, 1))
        yield f"{name}._extra_state/shard_{offset}_{size}"
