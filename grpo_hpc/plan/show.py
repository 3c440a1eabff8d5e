"""The plan as tables for a terminal; made for 80 columns."""

from __future__ import annotations

from collections.abc import Iterator

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from grpo_hpc.plan.make import Plan
from grpo_hpc.plan.memory import Term
from grpo_hpc.plan.topology import Topology

_MOST_RANKS = 16


def show_plan(plan: Plan, console: Console) -> None:
    """Print ``plan``."""
    console.print(Group(*_parts(plan)))


def _parts(plan: Plan) -> Iterator[RenderableType]:
    yield Text(f"{plan.name}: {_model_line(plan)}", style="bold")
    yield _topology_table(plan.topology)
    yield _schedule_table(plan)
    if plan.memory:
        yield _memory_table(plan.memory)
    for warning in plan.warnings:
        yield Text(f"Note: {warning}", style="yellow")


def _model_line(plan: Plan) -> str:
    ranks = plan.topology.world_size
    where = _count(ranks, "CPU rank" if plan.device == "cpu" else "GPU")
    if plan.shape is None:
        return where
    return f"{plan.shape.family}, {plan.shape.parameters() / 1e6:,.1f} M parameters, on {where}"


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", title_style="bold cyan", box=box.SIMPLE_HEAD, pad_edge=False)


def _topology_table(topology: Topology) -> Table:
    sizes = topology.sizes
    table = _table(f"Topology: tp {sizes['tp']}  cp {sizes['cp']}  dp {sizes['dp']}  pp {sizes['pp']}")
    for column in ("rank", "node", "tp", "cp", "dp", "pp"):
        table.add_column(column, justify="right")
    for place in topology.places[:_MOST_RANKS]:
        table.add_row(*(str(value) for value in (place.rank, place.node, place.tp, place.cp, place.dp, place.pp)))
    if (hidden := topology.world_size - _MOST_RANKS) > 0:
        table.caption = f"and {hidden} more ranks (see --json)"
        table.caption_justify = "left"
    return table


def _schedule_table(plan: Plan) -> Table:
    s = plan.schedule
    replicas = f"micro {s.micro_batch_size} * dp {s.dp} * accumulation {s.accumulation}"
    per_engine = s.completions_per_rank_per_rollout
    table = _table(
        f"Batch schedule: {plan.train_iters} optimizer steps, {s.rollouts} rollouts, "
        f"{s.num_generations} completions per prompt"
    )
    table.add_column("per")
    table.add_column("prompts", justify="right")
    table.add_column("completions", justify="right")
    table.add_column("from", style="dim")
    rows = [
        ("rollout", s.prompts_per_rollout, s.generation_batch_size, _count(s.steps_per_rollout, "step")),
        ("rollout, one engine", "", per_engine, _count(s.generation_batch_size // per_engine, "engine")),
        ("step", s.prompts_per_step, s.global_batch_size, replicas),
        ("step, one dp rank", s.prompts_per_step_per_dp, s.global_batch_size // s.dp, _count(s.dp, "dp rank")),
        ("micro-batch", "", s.micro_batch_size, f"{s.accumulation} per step and dp rank"),
        ("run", s.prompts_per_step * plan.train_iters, s.global_batch_size * plan.train_iters, ""),
    ]
    for row in rows:
        table.add_row(*(f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in row))
    return table


def _memory_table(terms: tuple[Term, ...]) -> Table:
    table = _table("Memory of the fullest rank, roughly")
    table.add_column("term", no_wrap=True)
    table.add_column("GiB", justify="right")
    table.add_column("from", style="dim")
    for where in ("training", "rollout"):
        chosen = [term for term in terms if term.where == where]
        for term in chosen:
            table.add_row(term.name, _gib(term.bytes), term.formula)
        table.add_row(f"all of {where}", _gib(sum(term.bytes for term in chosen)), "", style="bold", end_section=True)
    table.add_row("together", _gib(sum(term.bytes for term in terms)), "", style="bold")
    return table


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" + ("s" if number != 1 else "")


def _gib(size: int) -> str:
    return f"{size / 2**30:,.2f}"
