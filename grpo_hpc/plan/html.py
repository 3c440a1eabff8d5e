"""The plan as one self-contained page: SVG pictures and the same tables as in the terminal; no script, no network."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from grpo_hpc.html_page import COLOURS, ink_on, page
from grpo_hpc.plan.explain import batch_lines
from grpo_hpc.plan.make import Estimate, Plan
from grpo_hpc.plan.measured.measured_errors import accuracy
from grpo_hpc.plan.memory import GIB
from grpo_hpc.plan.rates import Times

_WIDTH, _LABEL = 1000, 90
_SHADES = [f"{colour}{opacity}" for opacity in ("", "99", "55") for colour in COLOURS]


def page_of(plans: Sequence[Plan]) -> str:
    """The page about ``plans``."""
    body = "\n".join(_plan(plan) for plan in plans)
    return page(f"Plan of {', '.join(plan.name for plan in plans)}", body)


def _plan(plan: Plan) -> str:
    verdict = ""
    if plan.estimate is not None and plan.estimate.hardware is not None:
        kind = {"fits": "fits", "tight": "tight", "does not fit": "no"}[plan.estimate.verdict]
        name = escape(plan.estimate.hardware.name)
        verdict = f': <span class="{kind}">{plan.estimate.verdict}</span> on {plan.topology.world_size} x {name}'
    parts = [f"<h1>{escape(plan.name)}{verdict}</h1>"]
    parts += [f'<p class="note">{escape(warning)}</p>' for warning in plan.warnings]
    parts += ["<h2>Ranks</h2>", _grid(plan)]
    parts += ["<h2>Batch schedule</h2>", *(f"<p>{escape(line)}</p>" for line in batch_lines(plan))]
    if plan.estimate is not None:
        parts += ["<h2>Memory of the fullest GPU</h2>", _memory(plan.estimate)]
        parts += [_terms(plan.estimate)]
        if plan.estimate.times is not None:
            parts += ["<h2>Time of a rollout and its steps</h2>", _timeline(plan.estimate.times)]
            parts += [_time_table(plan.estimate.times)]
            parts += [
                f'<p class="note">{escape(str(plan.estimate.task.pace or accuracy(plan.estimate.execution.eager)))}</p>'
            ]
    return "\n".join(parts)


def _svg(label: str, height: int, shapes: Iterable[str]) -> str:
    named = f'role="img" aria-label="{escape(label)}"'
    picture = f'<svg viewBox="0 0 {_WIDTH} {height}" {named} font-size="12">{"".join(shapes)}</svg>'
    return f'<div class="picture">{picture}</div>'


def _text(x: float, y: float, text: str, extra: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" {extra}>{escape(text)}</text>'


def _rect(x: float, y: float, width: float, height: float, fill: str, tip: str = "") -> str:
    tip = f"<title>{escape(tip)}</title>" if tip else ""
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(width, 0):.1f}" height="{height:.1f}" fill="{fill}">{tip}</rect>'


def _grid(plan: Plan) -> str:
    """One row of cells per node; the colour is the pipeline stage, or the replica when there is one stage."""
    top, shapes = plan.topology, []
    axes = [axis for axis in ("tp", "cp", "dp", "pp", "ep", "etp") if top.degrees.size(axis) > 1] or ["dp"]
    per_row = min(top.nproc_per_node, 8)
    width = (_WIDTH - _LABEL) / per_row
    rows_per_node = -(-top.nproc_per_node // per_row)
    for place in top.places:
        local = place.rank % top.nproc_per_node
        x = _LABEL + local % per_row * width
        y = (place.node * rows_per_node + local // per_row) * 34
        fill = COLOURS[(place.pp if top.degrees.pp > 1 else place.dp) % len(COLOURS)]
        where = " ".join(f"{axis}{getattr(place, axis)}" for axis in axes)
        shapes.append(_rect(x + 1, y + 1, width - 2, 30, fill, f"rank {place.rank}: {where}"))
        ink = f'fill="{ink_on(fill)}"'
        shapes.append(_text(x + 6, y + 14, f"rank {place.rank}", ink))
        shapes.append(_text(x + 6, y + 27, where, f'{ink} font-size="10"'))
        if local == 0:
            shapes.append(_text(0, y + 20, f"node {place.node}"))
    rows = (top.places[-1].node + 1) * rows_per_node
    for server in plan.servers:
        shapes.append(_rect(_LABEL + 1, rows * 34 + 1, _WIDTH - _LABEL - 2, 30, "#444444"))
        gpus = f"GPUs {server.gpus[0]}-{server.gpus[-1]}"
        shapes.append(_text(_LABEL + 6, rows * 34 + 20, f"vLLM on {gpus}, port {server.port}", 'fill="white"'))
        shapes.append(_text(0, rows * 34 + 20, f"node {server.node}"))
        rows += 1
    return _svg("Which rank is where", rows * 34 + 4, shapes)


def _memory(estimate: Estimate) -> str:
    uses = estimate.memory.phases
    capacity = estimate.hardware.memory if estimate.hardware else 0
    names = list(dict.fromkeys(term.name for use in uses for term in use.terms))
    colour = {name: _SHADES[n % len(_SHADES)] for n, name in enumerate(names)}
    scale = (_WIDTH - _LABEL - 70) / max(capacity, *(use.total for use in uses))
    shapes = []
    for row, use in enumerate(uses):
        y, x = row * 30, float(_LABEL)
        shapes.append(_text(0, y + 18, use.phase))
        for term in use.terms:
            width = max(term.bytes, 0) * scale
            tip = f"{term.name}: {term.bytes / GIB:.2f} GiB = {term.formula}"
            shapes.append(_rect(x, y + 4, width, 20, colour[term.name], tip))
            x += width
        shapes.append(_text(x + 5, y + 18, f"{use.total / GIB:.1f} GiB"))
    if capacity:
        end = _LABEL + capacity * scale
        shapes.append(f'<line x1="{end:.1f}" x2="{end:.1f}" y1="0" y2="{len(uses) * 30}" stroke="#b00020"/>')
    legend = "".join(
        f'<span class="key"><span style="color:{colour[name]}">&#9632;</span> {escape(name)}</span> ' for name in names
    )
    line = f"The red line is the end of the GPU, {capacity / GIB:.1f} GiB." if capacity else ""
    return (
        _svg("Memory of each phase; the table below has the numbers", len(uses) * 30, shapes)
        + f'<p>{legend}</p><p class="dim">{line}</p>'
    )


def _terms(estimate: Estimate) -> str:
    rows = []
    for use in [*estimate.memory.phases, estimate.memory.host]:
        rows += [(use.phase, t.name, f"{t.bytes / GIB:,.2f}", t.formula) for t in use.terms]
    rows += [("server", t.name, f"{t.bytes / GIB:,.2f}", t.formula) for t in estimate.memory.servers]
    return f"<details><summary>Every term</summary>{_table(('phase', 'term', 'GiB', 'from'), rows, 2)}</details>"


def _timeline(times: Times) -> str:
    shapes, x = [], 0.0
    for number, phase in enumerate(times.phases):
        width = phase.seconds / times.cycle * _WIDTH
        tip = f"{phase.name}: {phase.seconds:.2f} s, bound by {phase.bound}"
        fill = COLOURS[number % len(COLOURS)]
        shapes.append(_rect(x, 0, width, 36, fill, tip))
        if width > 70:
            shapes.append(_text(x + 6, 23, f"{phase.name} {phase.seconds:.1f} s", f'fill="{ink_on(fill)}"'))
        x += width
    line = (
        f"{times.cycle:,.1f} s for a rollout and {times.steps} steps: {times.rate:,.0f} tokens/s per GPU, "
        f"{times.mfu:.0%} of the matrix rate in training."
    )
    return _svg("Time of each phase; the table below has the numbers", 36, shapes) + f"<p>{escape(line)}</p>"


def _time_table(times: Times) -> str:
    rows = [
        (phase.name, part.name, f"{part.seconds:,.2f}", f"{part.bound}: {part.formula}")
        for phase in times.phases
        for part in phase.parts
    ]
    return f"<details><summary>Every part</summary>{_table(('phase', 'part', 's', 'bound by'), rows, 2)}</details>"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], number: int) -> str:
    lines = ["<tr>" + "".join(f"<th>{escape(name)}</th>" for name in head) + "</tr>"]
    for row in rows:
        cells = (f'<td class="{"n" if at == number else ""}">{escape(cell)}</td>' for at, cell in enumerate(row))
        lines.append("<tr>" + "".join(cells) + "</tr>")
    return "<table>" + "".join(lines) + "</table>"
