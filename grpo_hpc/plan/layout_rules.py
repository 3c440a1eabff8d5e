"""Whether a model can be cut as asked: every rule once, with its equation and the nearest values that would do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from grpo_hpc.models.shape import ModelShape
from grpo_hpc.plan.setup import Execution


@dataclass(frozen=True)
class Broken:
    """A rule that does not hold.

    Attributes:
        key: dotted key of the run file.
        size: its value.
        text: the rule with its numbers.
        nearest: values near ``size`` that keep it.
    """

    key: str
    size: int
    text: str
    nearest: tuple[int, ...]

    def lines(self) -> list[str]:
        near = " or ".join(map(str, self.nearest))
        return [f"{self.key} = {self.size}: {self.text}", *([f"  nearest values: {near}"] if near else [])]


def broken(shape: ModelShape, execution: Execution) -> list[Broken]:
    """Every rule that the model and the execution break together."""
    return list(_broken(shape, execution))


def legal(shape: ModelShape, execution: Execution) -> bool:
    """Whether no rule is broken."""
    return next(_broken(shape, execution), None) is None


def _broken(shape: ModelShape, execution: Execution) -> Iterator[Broken]:
    yield from _tensor(shape, execution)
    yield from _pipeline(shape, execution)
    yield from _experts(shape, execution)
    yield from _sequences(execution)
    if shape.heads % execution.engine_tp:
        yield _divides("rollout.vllm_tensor_parallel_size", execution.engine_tp, {"query heads": shape.heads})
    elif execution.engine_tp > execution.per_node and execution.engine_tp % execution.per_node:
        text = f"an engine over several nodes has all of their {execution.per_node} GPUs"
        near = execution.engine_tp // execution.per_node * execution.per_node
        nearest = (near, near + execution.per_node)
        yield Broken("rollout.vllm_tensor_parallel_size", execution.engine_tp, text, nearest)


def _tensor(shape: ModelShape, execution: Execution) -> Iterator[Broken]:
    tp = execution.degrees.tp
    counts = {"query heads": shape.heads}
    # with more ranks than key/value heads Megatron splits inside a head group, so either must divide the other
    if shape.mla is None and tp < shape.kv_heads:
        counts["key/value heads"] = shape.kv_heads
    if shape.dense_layers:
        counts["feed-forward width"] = shape.ffn
    if shape.experts and shape.experts.shared_ffn:
        counts["shared expert's width"] = shape.experts.shared_ffn
    if any(count % tp for count in counts.values()):
        yield _divides("parallel.tensor_model_parallel_size", tp, counts)
    elif shape.mla is None and tp > shape.kv_heads and tp % shape.kv_heads:
        text = f"must divide the {shape.kv_heads} key/value heads or be a multiple of them"
        nearest = _nearest(tp, lambda n: shape.heads % n == 0 and (shape.kv_heads % n == 0 or n % shape.kv_heads == 0))
        yield Broken("parallel.tensor_model_parallel_size", tp, text, nearest)


def _pipeline(shape: ModelShape, execution: Execution) -> Iterator[Broken]:
    d, first, last = execution.degrees, execution.first_layers, execution.last_layers
    key = "parallel.pipeline_model_parallel_size"
    ends = [n for n in (first, last) if n is not None]
    if ends and d.pp < 2:
        yield Broken(key, d.pp, "decoder_first/last_pipeline_num_layers ask for two stages or more", (2,))
        return
    even, rest = d.pp - len(ends), shape.layers - sum(ends)
    if d.vpp > 1 and ends:
        yield Broken("parallel.virtual_pipeline_model_parallel_size", d.vpp, "needs stages of one size", (1,))
        return
    if rest < even or (even and rest % even) or (not even and rest):
        named = f"{shape.layers} layers" + (f" - {' - '.join(map(str, ends))} of the ends" if ends else "")
        text = (
            f"stages share {named} evenly: {rest} / {even or 1}, remainder {rest % (even or 1) if rest > 0 else rest}"
        )
        nearest = _nearest(d.pp, lambda n: n > len(ends) and rest > 0 and rest % (n - len(ends)) == 0)
        yield Broken(key, d.pp, text, nearest)
        return
    if d.vpp > 1 and (shape.layers // d.pp) % d.vpp:
        text = f"cuts the {shape.layers // d.pp} layers of a stage into chunks of one size, remainder "
        text += str(shape.layers // d.pp % d.vpp)
        nearest = _nearest(d.vpp, lambda n: shape.layers // d.pp % n == 0)
        yield Broken("parallel.virtual_pipeline_model_parallel_size", d.vpp, text, nearest)


def _experts(shape: ModelShape, execution: Execution) -> Iterator[Broken]:
    d, e = execution.degrees, shape.experts
    key = "parallel.expert_model_parallel_size"
    if e is None:
        for name, size in (("expert_model_parallel_size", d.ep), ("expert_tensor_parallel_size", d.etp)):
            if size > 1:
                yield Broken(f"parallel.{name}", size, f"{shape.family} has no experts", (1,))
        return
    if e.count % d.ep:
        yield _divides(key, d.ep, {"experts": e.count})
    if e.ffn % d.etp:
        yield _divides("parallel.expert_tensor_parallel_size", d.etp, {"expert's feed-forward width": e.ffn})
    if d.tp > 1 and not execution.sequence_parallel:
        text = "Megatron trains experts under tensor parallelism with parallel.sequence_parallel: true only"
        yield Broken("parallel.tensor_model_parallel_size", d.tp, text, (1,))


def _sequences(execution: Execution) -> Iterator[Broken]:
    unit = execution.degrees.cp * 2
    if execution.degrees.cp > 1 and execution.micro_tokens < unit:
        text = (
            f"a micro-batch of {execution.micro_tokens} tokens must give every rank two pieces: at least {unit} tokens"
        )
        yield Broken("parallel.context_parallel_size", execution.degrees.cp, text, (1,))


def _divides(key: str, size: int, counts: dict[str, int]) -> Broken:
    parts = [f"{count} {what} / {size}, remainder {count % size}" for what, count in counts.items() if count % size]
    text = f"must divide {' and '.join(counts)}: {'; '.join(parts)}"
    return Broken(key, size, text, _nearest(size, lambda n: all(count % n == 0 for count in counts.values())))


def _nearest(size: int, good: Callable[[int], bool]) -> tuple[int, ...]:
    """The nearest good sizes below and above."""
    below = next((n for n in range(size - 1, 0, -1) if good(n)), None)
    above = next((n for n in range(size + 1, 8 * size + 9) if good(n)), None)
    return tuple(n for n in (below, above) if n is not None)
