"""The nearest values that make the batch sizes fit together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from math import isqrt, lcm
from typing import Any

from grpo_hpc.config.batch import BrokenRule, Sizes, broken_rules, equations, sizes_of
from grpo_hpc.config.problems import Problem
from grpo_hpc.config.sections import MOST_RANKS, SECTION_OF, RunConfig

_REACH = 64  # how far above the present value a key with no natural limit is searched


def batch_problems(cfg: RunConfig) -> list[Problem]:
    """One problem that shows every broken batch rule of ``cfg`` and how to mend it; empty when all rules hold."""
    sizes = sizes_of(cfg)
    if too_many := _too_many_ranks(sizes):
        return [too_many]
    broken = broken_rules(sizes)
    return [Problem("", "\n".join([*equations(broken), *suggestions(sizes, broken)]))] if broken else []


def _too_many_ranks(sizes: Sizes) -> Problem | None:
    for key, ranks in {"nodes": sizes.world, "vllm_server_nodes": sizes.rollout_world}.items():
        if ranks > MOST_RANKS:
            most = MOST_RANKS // sizes.nproc_per_node
            text = f"with {sizes.nproc_per_node} ranks each are {ranks} ranks, more than {MOST_RANKS}; at most {most}"
            return Problem(f"{SECTION_OF[key]}.{key}", text)
    return None


def suggestions(sizes: Sizes, broken: list[BrokenRule]) -> list[str]:
    """Lines that name, for every key of the broken rules, the nearest values that mend all rules by themselves.

    When no single key can do that, the nearest change of one key together with ``global_batch_size`` is named.
    """
    keys = list(dict.fromkeys(key for rule in broken for key in rule.keys))
    single = {key: found for key in keys if (found := nearest_values(sizes, key))}
    if single:
        head = "nearest values that fit, changing one key:" if len(single) > 1 else "nearest values that fit:"
        return [head, *(_line(sizes, key, values) for key, values in single.items())]
    pairs = [pair for key in keys if key != "global_batch_size" and (pair := _nearest_pair(sizes, key))]
    return ["nearest values that fit, changing two keys:", *(f"    {pair}" for pair in pairs)] if pairs else []


def nearest_values(sizes: Sizes, key: str) -> list[int]:
    """The nearest valid values of ``key`` below and above its present one, with all other keys as they are."""
    now = _now(sizes, key)
    fitting = (v for v in _candidates(sizes, key) if v != now and not broken_rules(_with(sizes, key, v)))
    below = above = None
    for value in fitting:
        if value < now and below is None:
            below = value
        elif value > now and above is None:
            above = value
        if below is not None and above is not None:
            break
    return [value for value in (below, above) if value is not None]


def _candidates(sizes: Sizes, key: str) -> Iterator[int]:
    """Values worth a try for ``key``, nearest to the present one first."""
    now = _now(sizes, key)
    if key == "global_batch_size" and sizes.generation_batch_size is None:
        return _multiples(_step_unit(sizes), now)
    if key == "generation_batch_size":
        return _multiples(sizes.global_batch_size, now)
    if key in ("nproc_per_node", "steps_per_generation"):
        found: Iterable[int] = range(1, now + _REACH + 1)
    else:
        found = _divisors(_divided(sizes, key)) - ({1} if key == "num_generations" else set())
    return iter(sorted(found, key=lambda value: abs(value - now)))


def _divided(sizes: Sizes, key: str) -> int:
    """What every valid value of ``key`` divides."""
    if key == "global_batch_size" and sizes.generation_batch_size is not None:
        return sizes.generation_batch_size
    if key in ("micro_batch_size", "num_generations"):
        return sizes.global_batch_size
    return sizes.rollout_world if key == "vllm_tensor_parallel_size" else sizes.world


def _divisors(number: int) -> set[int]:
    small = [value for value in range(1, isqrt(number) + 1) if number % value == 0]
    return {*small, *(number // value for value in small)}


def _step_unit(sizes: Sizes) -> int:
    """What every valid global_batch_size is a multiple of."""
    replicas = max(1, sizes.world // sizes.footprint) * sizes.micro_batch_size
    return lcm(sizes.num_generations, replicas)


def _multiples(unit: int, now: int) -> Iterator[int]:
    below = now // unit
    for distance in range(_REACH):
        if below - distance > 0:
            yield (below - distance) * unit
        yield (below + 1 + distance) * unit


def _nearest_pair(sizes: Sizes, key: str) -> str | None:
    """The nearest change of ``key`` and ``global_batch_size`` together that mends all rules."""
    for value in islice(_candidates(sizes, key), 2 * _REACH):
        if value == _now(sizes, key):
            continue
        changed = _with(sizes, key, value)
        if changed.world % changed.footprint or changed.world % changed.expert_footprint:
            continue
        if found := nearest_values(changed, "global_batch_size"):
            best = min(found, key=lambda size: abs(size - sizes.global_batch_size))
            return f"{SECTION_OF[key]}.{key}={value} batch.global_batch_size={best}"
    return None


def _now(sizes: Sizes, key: str) -> int:
    value: int | None = getattr(sizes, key)
    return 1 if value is None else value  # only steps_per_generation is asked for while absent; it then counts as 1


def _with(sizes: Sizes, key: str, value: Any) -> Sizes:
    return sizes._replace(**{key: value})


def _line(sizes: Sizes, key: str, values: list[int]) -> str:
    return f"    {SECTION_OF[key]}.{key}: {' or '.join(map(str, values))} (now {getattr(sizes, key)})"
