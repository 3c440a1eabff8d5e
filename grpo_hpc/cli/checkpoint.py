"""``grpo-hpc checkpoint``: convert, verify, merge-lora, extract-lora, inspect, reshard."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from grpo_hpc.observe.jsonl import json_text

if TYPE_CHECKING:
    from grpo_hpc.checkpoint.inspect import Node
    from grpo_hpc.checkpoint.naming import Parallel
    from grpo_hpc.checkpoint.run import Plan, Work

EXIT_FAILED = 1
_PATH = click.Path(path_type=Path)
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def _bytes(ctx: click.Context, parameter: click.Parameter, value: str) -> int:
    """``4GB``, ``512M``, ``1.5GiB`` or plain bytes; units are powers of 1024."""
    number, unit = value.strip().upper().removesuffix("B").removesuffix("I"), ""
    if number and number[-1] in _UNITS:
        number, unit = number[:-1], number[-1]
    try:
        size = int(float(number) * _UNITS[unit])
    except (ValueError, OverflowError) as error:
        raise click.BadParameter(f"{value!r} is no size such as 4GB or 512MB") from error
    if size <= 0:
        raise click.BadParameter(f"{value!r} is not more than nothing")
    return size


def _options(*options: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def decorate(function: Any) -> Any:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


_work = _options(
    click.option("--workers", type=click.IntRange(1), default=min(8, os.cpu_count() or 1), help="Worker processes."),
    click.option("--max-memory", callback=_bytes, default="4GB", help="Resident memory of all processes together."),
    click.option("--json", "as_json", is_flag=True, help="Print the result as JSON."),
)
_config = click.option("--hf-config", type=_PATH, help="Model folder that a Megatron checkpoint was made from.")
_layout = _options(
    *(
        click.option(f"--{axis}", type=click.IntRange(1), default=1, help=f"{what} parallel size.")
        for axis, what in {
            "tp": "Tensor",
            "pp": "Pipeline",
            "ep": "Expert",
            "etp": "Expert tensor",
            "vpp": "Virtual pipeline",
        }.items()
    )
)


@click.group("checkpoint", short_help="Convert, verify, merge, inspect and reshard checkpoints.")
def command() -> None:
    """Models on disk: Hugging Face folders and Megatron-Core's distributed checkpoints.

    No GPU and no model in memory: tensors are copied from file to file. A target folder appears when it is whole.
    """


@command.command("convert")
@click.argument("source", type=_PATH, metavar="SRC")
@click.argument("target", type=_PATH, metavar="DST")
@click.option("--to", "to", type=click.Choice(["megatron", "hf"]), help="Format of DST; found by itself if left out.")
@_layout
@_config
@_work
def convert(
    source: Path,
    target: Path,
    to: str | None,
    hf_config: Path | None,
    workers: int,
    max_memory: int,
    as_json: bool,
    **axes: int,
) -> None:
    """Convert SRC to DST: Hugging Face to Megatron, Megatron to Hugging Face, or quantised to bfloat16 (--to hf).

    The layout (--tp --pp --ep --etp --vpp) decides how a Megatron checkpoint is cut into files; it can be loaded in any
    other. A conversion that was killed goes on when the same command is given again.
    """
    from grpo_hpc.checkpoint.dequantise import is_quantised, plan_dequantise
    from grpo_hpc.checkpoint.folders import open_folder
    from grpo_hpc.checkpoint.to_hf import plan_to_hf
    from grpo_hpc.checkpoint.to_megatron import plan_to_megatron

    folder = open_folder(source, hf_config)
    other = "hf" if folder.kind == "megatron" else "megatron"
    if to == folder.kind == "hf" and is_quantised(source):
        _build(plan_dequantise(folder), target, workers, max_memory, as_json)
        return
    if to not in (None, other):
        hint = "reshard cuts a Megatron checkpoint for another layout" if to == "megatron" else "there is nothing to do"
        raise click.UsageError(f"{source} is in the format {to} already; {hint}")
    if other == "hf" and any(size != 1 for size in axes.values()):
        raise click.UsageError("--tp --pp --ep --etp --vpp are for --to megatron")
    plan = plan_to_megatron(folder, _parallel(axes)) if other == "megatron" else plan_to_hf(folder)
    _build(plan, target, workers, max_memory, as_json)


@command.command("reshard")
@click.argument("source", type=_PATH, metavar="SRC")
@click.argument("target", type=_PATH, metavar="DST")
@_layout
@_config
@_work
def reshard(
    source: Path, target: Path, hf_config: Path | None, workers: int, max_memory: int, as_json: bool, **axes: int
) -> None:
    """Cut the Megatron checkpoint SRC for another layout, with its optimizer state.

    A training checkpoint stays one: `resume` can go on from it.
    """
    from grpo_hpc.checkpoint.folders import open_folder
    from grpo_hpc.checkpoint.reshard import plan_reshard

    folder = open_folder(source, hf_config)
    if folder.kind != "megatron":
        raise click.UsageError(f"{source} is a Hugging Face folder; convert it with --to megatron")
    _build(plan_reshard(folder, _parallel(axes)), target, workers, max_memory, as_json)


@command.command("merge-lora")
@click.argument("base", type=_PATH, metavar="BASE")
@click.argument("adapter", type=_PATH, metavar="ADAPTER")
@click.argument("target", type=_PATH, metavar="DST")
@_config
@_work
def merge_lora(
    base: Path, adapter: Path, target: Path, hf_config: Path | None, workers: int, max_memory: int, as_json: bool
) -> None:
    """Write BASE with the PEFT adapter in the folder ADAPTER merged into it to DST, in the format of BASE."""
    from grpo_hpc.checkpoint.folders import open_folder
    from grpo_hpc.checkpoint.peft_adapters import plan_merge, read_adapter

    _build(plan_merge(open_folder(base, hf_config), read_adapter(adapter)), target, workers, max_memory, as_json)


@command.command("extract-lora")
@click.argument("base", type=_PATH, metavar="BASE")
@click.argument("tuned", type=_PATH, metavar="TUNED")
@click.argument("target", type=_PATH, metavar="DST")
@click.option("--rank", type=click.IntRange(1), default=16, show_default=True, help="Rank of the adapter.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def extract_lora(base: Path, tuned: Path, target: Path, rank: int, as_json: bool) -> None:
    """Write the difference of two Hugging Face folders as a PEFT adapter.

    A difference of higher rank is approximated as well as that rank can; how much is missed is reported.
    """
    from grpo_hpc.checkpoint.folders import open_folder
    from grpo_hpc.checkpoint.peft_adapters import extract

    missed = extract(open_folder(base), open_folder(tuned), target, rank)
    worst = max(missed, key=lambda name: missed[name])
    if as_json:
        click.echo(json_text({"target": str(target), "rank": rank, "missed": missed}))
    else:
        click.echo(f"{target}: {len(missed)} weights, rank {rank}; most is missed of {worst}: {missed[worst]:.2%}")


@command.command("verify")
@click.argument("first", type=_PATH, metavar="A")
@click.argument("second", type=_PATH, metavar="[B]", required=False)
@click.option("--logits", "prompt", metavar="PROMPT", help="Compare the logits of both models on this text too.")
@_config
@_work
def verify(
    first: Path,
    second: Path | None,
    prompt: str | None,
    hf_config: Path | None,
    workers: int,
    max_memory: int,
    as_json: bool,
) -> int:
    """Compare A with B tensor by tensor (name, shape, dtype, value), whatever format each has.

    Without B, A is compared with the digests that were noted when it was written. Exit code 1 when something differs.
    """
    from grpo_hpc.checkpoint.folders import open_folder
    from grpo_hpc.checkpoint.verify import verify_equal, verify_whole

    if prompt is not None and second is None:
        raise click.UsageError("--logits compares two models: give B")
    one = open_folder(first, hf_config)
    with _progress(workers, max_memory, as_json) as work:
        report = verify_whole(one, work) if second is None else verify_equal(one, open_folder(second, hf_config), work)
    result = {"checked": report.checked, "bytes": report.nbytes, "faults": report.faults, "left_out": report.left_out}
    if prompt is not None and second is not None:
        from grpo_hpc.checkpoint.logits import TOLERANCE, compare_logits

        result["logits"] = difference = compare_logits(one, open_folder(second, hf_config), prompt)
        if not difference <= TOLERANCE:
            report.faults.append(f"the logits differ by {difference:.1e} of the largest; {TOLERANCE:.0e} is rounding")
    if as_json:
        click.echo(json_text({**result, "faults": report.faults, "equal": not report.faults}))
    else:
        for fault in report.faults[:50]:
            click.echo(fault)
        logits = f", logits equal to {result['logits']:.1e}" if "logits" in result and not report.faults else ""
        verdict = f"{len(report.faults)} differences" if report.faults else "all equal" + logits
        if report.left_out:
            click.echo(f"not compared, as it is no part of the model: {_some(report.left_out)}")
        click.echo(f"{report.checked:,} tensors or pieces, {_size(report.nbytes)} read: {verdict}")
    return EXIT_FAILED if report.faults else 0


@command.command("inspect")
@click.argument("source", type=_PATH, metavar="SRC")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON, every tensor by itself.")
def inspect(source: Path, as_json: bool) -> None:
    """Show what is in SRC: a tree of modules with shapes and sizes, files, layout, step.

    Of a model of an unknown family it says which known one it resembles, and what differs.
    """
    from grpo_hpc.checkpoint.folders import open_folder
    from grpo_hpc.checkpoint.inspect import described, relative_of, summary, tree

    folder = open_folder(source)
    facts, resembles = summary(folder), relative_of(folder)
    if as_json:
        tensors = {
            name: {"dtype": t.dtype, "shape": t.shape, "bytes": t.nbytes, "chunks": len(t.chunks)}
            for name, t in folder.tensors.items()
        }
        click.echo(json_text({**facts, "weights": tensors, "relative": resembles and asdict(resembles)}))
        return
    from rich.console import Console
    from rich.tree import Tree

    console = Console(soft_wrap=True, highlight=False)
    shown = Tree(f"{folder.path}  ({folder.kind}, {_size(facts['bytes'])})")
    _grow(shown, tree(folder))
    console.print(shown)
    for name in ("family", "step", "layout", "dtypes", "tensors", "chunks", "optimizer", "digests"):
        if facts[name] is not None:
            click.echo(f"{name}: {facts[name]}")
    for name, size in facts["files"].items():
        click.echo(f"  {name}  {_size(size)}")
    if resembles is not None:
        click.echo("\n".join(described(resembles)))


def _grow(shown: Any, node: Node) -> None:
    from rich.markup import escape

    for child in node.children.values():
        tensor, times = child.tensor, f" x{child.count}" if child.count > 1 else ""
        what = f"  {tensor.dtype} {list(tensor.shape)}" if tensor else ""
        chunks = f" in {len(tensor.chunks)} chunks" if tensor and len(tensor.chunks) > 1 else ""
        _grow(shown.add(escape(f"{child.name}{times}{what}{chunks}  {_size(child.nbytes)}")), child)


def _parallel(axes: dict[str, int]) -> Parallel:
    from grpo_hpc.checkpoint.naming import Parallel

    return Parallel(**axes)


def _build(plan: Plan, target: Path, workers: int, max_memory: int, as_json: bool) -> None:
    """Carry out a plan and say what was done."""
    from grpo_hpc.checkpoint.run import build

    start = time.monotonic()
    with _progress(workers, max_memory, as_json) as work:
        build(plan, target, work)
    seconds = time.monotonic() - start
    if as_json:
        click.echo(json_text({**plan.about, "target": str(target), "bytes": plan.nbytes, "seconds": seconds}))
    else:
        rate = plan.nbytes / max(seconds, 1e-9) / 1e9
        if plan.about.get("left_out"):
            click.echo(f"left out, as it is no part of the model: {_some(plan.about['left_out'])}")
        files = f"{len(plan.sizes)} file" + ("s" if len(plan.sizes) != 1 else "")
        click.echo(f"{target}: {_size(plan.nbytes)} in {seconds:.1f} s ({rate:.2f} GB/s), {files}")


@contextmanager
def _progress(workers: int, max_memory: int, quiet: bool) -> Iterator[Work]:
    """What a conversion may use, with a bar on a terminal."""
    from grpo_hpc.checkpoint.run import Work

    if quiet or not sys.stderr.isatty():
        yield Work(workers, max_memory)
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("")
        yield Work(workers, max_memory, lambda done, total: bar.update(task, completed=done, total=total))


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _size(nbytes: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if nbytes < 1000:
            return f"{nbytes:.0f} {unit}" if unit == "B" else f"{nbytes:.1f} {unit}"
        nbytes /= 1000
    return f"{nbytes:.2f} TB"
