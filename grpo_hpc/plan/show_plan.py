"""The plan for a terminal: rank grid, batch schedule, memory bars, the step as a timeline."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich import box
from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from grpo_hpc.models.families.counting import count_active, count_parameters
from grpo_hpc.plan.explain import batch_lines
from grpo_hpc.plan.make import Estimate, Plan
from grpo_hpc.plan.measured.measured_errors import accuracy
from grpo_hpc.plan.memory import GIB, Term, Use
from grpo_hpc.plan.rates import Times
from grpo_hpc.plan.topology import Place, Topology

COLOURS = ("cyan", "green", "yellow", "magenta", "blue", "red", "bright_cyan", "bright_green", "bright_yellow", "white")
VERDICTS = {"fits": "bold green", "tight": "bold yellow", "does not fit": "bold red"}
_MOST_NODES = 4
_BAR = 48


def show_plan(plan: Plan, console: Console, explain: Sequence[str] = ()) -> None:
    """Print ``plan``; ``explain`` names parts that are shown in full: ``batch``, ``memory``, ``time``."""
    console.print(Group(*_parts(plan, explain)))


def show_side_by_side(plans: Sequence[Plan], console: Console) -> None:
    """Two or more plans in one table, a column each."""
    table = _table("Side by side")
    table.add_column("")
    for plan in plans:
        table.add_column(plan.name, justify="right")
    rows = [dict(_figures(plan)) for plan in plans]
    for label in dict.fromkeys(label for row in rows for label in row):
        cells = [row.get(label, "-") for row in rows]
        table.add_row(label, *cells, style="" if len(set(cells)) == 1 else "bold")
    console.print(table)
    for plan in plans:
        for warning in plan.warnings:
            console.print(Text(f"Note on {plan.name}: {warning}", style="yellow"))


def _figures(plan: Plan) -> Iterator[tuple[str, str]]:
    d, s = plan.topology.degrees, plan.schedule
    yield "GPUs that train" if plan.device == "cuda" else "ranks", f"{d.world}"
    if plan.estimate is not None and plan.estimate.hardware is not None:
        yield "GPU", plan.estimate.hardware.name
    yield "tp x cp x pp x dp", f"{d.tp} x {d.cp} x {d.pp} x {d.dp}"
    yield "etp x ep x edp", f"{d.etp} x {d.ep} x {d.edp}"
    yield "completions per step", f"{s.global_batch_size:,}"
    yield "completions per rollout", f"{s.generation_batch_size:,}"
    if plan.estimate is None:
        return
    yield "verdict", plan.estimate.verdict
    for use in plan.estimate.memory.phases:
        yield f"memory, {use.phase}", f"{use.total / GIB:.1f} GiB"
    yield "host memory of a node", f"{plan.estimate.memory.host.total / GIB:,.0f} GiB"
    if times := plan.estimate.times:
        for phase in times.phases:
            yield f"time, {phase.name}", f"{phase.seconds:.1f} s"
        yield "time of a step", f"{times.step:.1f} s"
        yield "tokens/s per GPU", f"{times.rate:,.0f}"


def _parts(plan: Plan, explain: Sequence[str]) -> Iterator[RenderableType]:
    yield _headline(plan)
    yield _grid(plan)
    yield _groups(plan.topology)
    yield _schedule_table(plan)
    if "batch" in explain:
        yield Text("\n".join(batch_lines(plan)) + "\n")
    if plan.estimate is not None:
        yield from _estimate(plan.estimate, explain)
    for warning in plan.warnings:
        yield Text(f"Note: {warning}", style="yellow")


def _headline(plan: Plan) -> Text:
    where = _count(plan.topology.world_size, "CPU rank" if plan.device == "cpu" else "GPU")
    text = Text(f"{plan.name}: ", style="bold")
    if plan.shape is not None:
        total, active = count_parameters(plan.shape), count_active(plan.shape)
        size = f"{total / 1e6:,.1f} M parameters" + (f" ({active / 1e6:,.1f} M active)" if active != total else "")
        text.append(f"{plan.shape.family}, {size}, ")
    text.append(f"on {where}")
    if plan.estimate is not None and plan.estimate.hardware is not None:
        text.append(f" ({plan.estimate.hardware.name}): ")
        text.append(plan.estimate.verdict, style=VERDICTS[plan.estimate.verdict])
    return text


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", title_style="bold cyan", box=box.SIMPLE_HEAD, pad_edge=False)


# -- topology ---------------------------------------------------------------------------------------------------------


def _grid(plan: Plan) -> RenderableType:
    """Nodes as boxes, GPUs as cells; the colour is the pipeline stage, or the replica when there is one stage."""
    top = plan.topology
    shown = top.places[: _MOST_NODES * top.nproc_per_node]
    nodes: dict[int, list[Place]] = {}
    for place in shown:
        nodes.setdefault(place.node, []).append(place)
    boxes = [Panel(_cells(places, top), title=f"node {node}", expand=False) for node, places in nodes.items()]
    for node in sorted({server.node for server in plan.servers})[:_MOST_NODES]:
        lines = [
            f"GPU {server.gpus[0]}-{server.gpus[-1]}: vLLM tp {len(server.gpus) * server.nodes}, port {server.port}"
            for server in plan.servers
            if server.node == node
        ]
        boxes.append(Panel(Text("\n".join(lines), style="bright_blue"), title=f"node {node}: vLLM", expand=False))
    parts: list[RenderableType] = [Columns(boxes)]
    if hidden := (top.world_size - len(shown)) // top.nproc_per_node:
        parts.append(Text(f"and {hidden} more nodes like these (--json has every rank)", style="dim"))
    return Group(*parts)


def _cells(places: Sequence[Place], top: Topology) -> Text:
    axes = [axis for axis in ("tp", "cp", "dp", "pp", "ep") if top.degrees.size(axis) > 1] or ["dp"]
    text = Text()
    for number, place in enumerate(places):
        style = COLOURS[(place.pp if top.degrees.pp > 1 else place.dp) % len(COLOURS)]
        text.append(f"{place.rank:>3} " + " ".join(f"{axis}{getattr(place, axis)}" for axis in axes), style=style)
        text.append("\n" if number % 2 and number + 1 < len(places) else "   " if number + 1 < len(places) else "")
    return text


def _groups(top: Topology) -> RenderableType:
    crossing = top.crossing()
    if not crossing:
        return Text("")
    inside = [name for name, nodes in crossing.items() if nodes == 1]
    across = [f"{name} (up to {nodes} nodes)" for name, nodes in crossing.items() if nodes > 1]
    lines = [f"groups inside a node: {', '.join(inside)}"] if inside else []
    lines += [f"groups over nodes: {', '.join(across)}"] if across else []
    return Text("\n".join(lines) + "\n")


# -- batch ------------------------------------------------------------------------------------------------------------


def _schedule_table(plan: Plan) -> Table:
    s = plan.schedule
    replicas = f"micro {s.micro_batch_size} * dp {s.dp} * accumulation {s.accumulation}"
    micro, passes = f"{s.micro_batch_size:,}", f"{s.accumulation} per step and dp rank"
    if (budget := s.max_tokens_per_micro_batch) is not None:
        replicas, micro, passes = "", "", f"up to {budget:,} tokens{_about(plan)}"
    per_engine = s.completions_per_rank_per_rollout
    table = _table(f"Batch schedule: {_length(plan)}, {s.num_generations} completions per prompt")
    table.add_column("per")
    table.add_column("prompts", justify="right")
    table.add_column("completions", justify="right")
    table.add_column("from", style="dim")
    rows: list[tuple[str, int | str, int | str, str]] = [
        ("rollout", s.prompts_per_rollout, s.generation_batch_size, _count(s.steps_per_rollout, "step")),
        ("rollout, one engine", "", per_engine, _count(s.engines, "engine")),
        ("step", s.prompts_per_step, s.global_batch_size, replicas),
        ("step, one dp rank", "", s.global_batch_size // s.dp, _count(s.dp, "dp rank")),
        ("micro-batch", "", micro, passes),
    ]
    if (steps := plan.train_iters) is not None:
        rows.append(("run", s.prompts_per_step * steps, s.global_batch_size * steps, ""))
    for row in rows:
        table.add_row(*(f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in row))
    return table


def _length(plan: Plan) -> str:
    if plan.train_iters is None:
        return _count(plan.run.batch.num_train_epochs or 0, "epoch")
    return f"{plan.train_iters} optimizer steps, {plan.schedule.rollouts} rollouts"


def _about(plan: Plan) -> str:
    """How many micro-batches a token budget makes of a step, at the lengths that are planned with."""
    if plan.estimate is None:
        return ""
    task = plan.estimate.task
    return f", about {plan.estimate.execution.micro_batches(task, task.usual):,} per step and dp rank"


# -- memory and time --------------------------------------------------------------------------------------------------


def _estimate(estimate: Estimate, explain: Sequence[str]) -> Iterator[RenderableType]:
    memory = estimate.memory
    yield _memory_bars(estimate)
    full = "memory" in explain
    for use in memory.phases if full else [memory.peak]:
        yield _terms_table(f"Memory of the {use.phase} phase, stage {memory.stage}", use.terms)
    yield _terms_table("Host memory of a node", memory.host.terms)
    if memory.servers:
        yield _terms_table("Memory of a vLLM server's GPU", memory.servers)
    if estimate.hardware is not None:
        task, execution = estimate.task, estimate.execution
        disk = memory.checkpoint / 1e9 / estimate.hardware.disk_gb_per_s / execution.nodes
        yield Text(
            f"KV cache of an engine: {memory.kv_tokens:,} tokens, {memory.kv_tokens // task.longest:,} completions at "
            f"their longest; it works on up to {execution.sequences(task):,} at a time.\n"
            f"A checkpoint: {memory.checkpoint / 1e9:,.1f} GB, about {disk:,.0f} s.\n"
        )
    if estimate.times is not None:
        yield _timeline(estimate.times)
        yield Text(f"{estimate.task.pace or accuracy(estimate.execution.eager)}\n", style="dim")
        if "time" in explain:
            yield _time_table(estimate.times)


def _memory_bars(estimate: Estimate) -> RenderableType:
    """One stacked bar per phase; the mark is the end of the GPU."""
    uses, capacity = estimate.memory.phases, estimate.hardware.memory if estimate.hardware else 0
    scale = max(capacity, *(use.total for use in uses)) / _BAR
    names = list(dict.fromkeys(term.name for use in uses for term in use.terms))
    style = {name: COLOURS[n % len(COLOURS)] for n, name in enumerate(names)}
    table = _table("Memory of the fullest GPU" if capacity else "Memory of the fullest rank")
    for column in ("phase", "", "GiB"):
        table.add_column(column, justify="right" if column == "GiB" else "left", no_wrap=True)
    for use in uses:
        table.add_row(use.phase, _bar(use, scale, style, capacity), f"{use.total / GIB:,.1f}")
    legend = Text("  ").join(Text(f"█ {name}", style=style[name]) for name in names)
    end = Text(f"\n│ end of the GPU: {capacity / GIB:.1f} GiB", style="dim") if capacity else Text()
    return Group(table, Text.assemble(legend, end, "\n"))


def _bar(use: Use, scale: float, style: dict[str, str], capacity: int) -> Text:
    text, at, reached = Text(), 0.0, 0
    for term in use.terms:
        at += max(term.bytes, 0) / scale
        cells = round(at) - reached
        text.append("█" * cells, style=style[term.name])
        reached += max(cells, 0)
    end = round(capacity / scale)
    if capacity and reached < end:
        text.append("·" * (end - reached - 1) + "│", style="dim")
    return text


def _terms_table(title: str, terms: Sequence[Term]) -> Table:
    table = _table(title)
    table.add_column("term", no_wrap=True)
    table.add_column("GiB", justify="right")
    table.add_column("from", style="dim")
    for term in terms:
        table.add_row(term.name, f"{term.bytes / GIB:,.2f}", term.formula)
    table.add_row("together", f"{sum(term.bytes for term in terms) / GIB:,.2f}", "", style="bold")
    return table


def _timeline(times: Times) -> RenderableType:
    """The cycle of one rollout and its steps as one bar."""
    line, rows = Text(), []
    for number, phase in enumerate(times.phases):
        if not phase.parts:
            continue
        colour = COLOURS[number]
        line.append("█" * max(1, round(64 * phase.seconds / times.cycle)), style=colour)
        share = f"{phase.seconds:,.1f} s ({phase.seconds / times.cycle:.0%})"
        rows.append(Text.assemble(("█ ", colour), f"{phase.name}: {share}, bound by {phase.bound}"))
    head = (
        f"Time of a rollout and its {_count(times.steps, 'step')}: {times.cycle:,.1f} s, {times.rate:,.0f} tokens/s "
        f"per GPU, {times.mfu:.0%} of the matrix rate in training"
    )
    return Group(Text(head, style="bold cyan"), line, *rows, Text())


def _time_table(times: Times) -> Table:
    table = _table("Time, part by part")
    table.add_column("phase")
    table.add_column("part")
    table.add_column("s", justify="right")
    table.add_column("bound by")
    table.add_column("from", style="dim")
    for phase in times.phases:
        for part in phase.parts:
            table.add_row(phase.name, part.name, f"{part.seconds:,.2f}", part.bound, part.formula)
    return table


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" + ("s" if number != 1 else "")
