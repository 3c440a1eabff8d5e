"""``grpo-hpc status``."""

from __future__ import annotations

import click

from grpo_hpc.cli.completion import run_dirs
from grpo_hpc.observe.jsonl import json_text


@click.command("status", short_help="Show how a run stands.")
@click.argument("run_dir", metavar="[RUN_DIR]", required=False, shell_complete=run_dirs)
@click.option("--metric", "metrics", multiple=True, metavar="NAME", help="Show the course of this metric, too.")
@click.option("--json", "as_json", is_flag=True, help="Print the same facts as JSON.")
def command(run_dir: str | None, metrics: tuple[str, ...], as_json: bool) -> None:
    """Show the state of a run, its step, time left, reward, last error and where its log is.

    What the run directory records is held against Slurm's queue and accounting. Without RUN_DIR: every run in ./runs
    that waits or runs, or else the one that changed last. For the folder of a sweep: its runs side by side.

    \b
    States: prepared, queued, starting, running; success, stopped, cancelled, timeout, preempted,
    node_failure, out_of_memory, error, preflight, crash, lost (gone without a trace).

    --json prints one object, without RUN_DIR a list of them; times are seconds since the epoch:
    run_dir, name, state, detail, executor, job_ids, attempt, nodes, step, total_steps, phase, seconds_per_step,
    seconds_left, started, ended, changed, last_error, logs, known (false: as recorded, nobody could be asked), heard
    (the newest event), seconds_run (of all starts), checkpoint and export (paths), reward, rewards (one a step),
    held_out, damaged (what is wrong with records that were passed over).
    For a sweep it is an object with folder, keys, points (each with values beside these facts) and damaged.
    """
    from grpo_hpc.runs.overview import comparison, present_runs
    from grpo_hpc.runs.run_dir import RunDir
    from grpo_hpc.runs.show_standing import console, show, show_courses, show_standing
    from grpo_hpc.runs.standing import standing
    from grpo_hpc.runs.sweep import Sweep

    if metrics and as_json:
        raise click.UsageError("--metric belongs to what is shown here; metrics.jsonl has every metric as JSON")
    if metrics and run_dir and Sweep.at(run_dir):
        raise click.UsageError(f"--metric is for single runs; for a sweep: grpo-hpc report {run_dir}")
    if run_dir and (sweep := Sweep.at(run_dir)):
        found = comparison(sweep)
        click.echo(json_text(found.to_dict(), indent=2)) if as_json else show(found, console())
        return
    runs = [standing(RunDir.open(run_dir))] if run_dir else present_runs()
    if as_json:
        facts = [run.to_dict() for run in runs]
        click.echo(json_text(facts[0] if run_dir else facts, indent=2))
        return
    out = console()
    for index, run in enumerate(runs):
        if index:
            out.print()
        show_standing(run, out)
        show_courses(RunDir(run.run_dir).metrics, metrics, out)
