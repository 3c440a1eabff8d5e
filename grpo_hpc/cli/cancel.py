"""``grpo-hpc cancel``."""

from __future__ import annotations

import click

from grpo_hpc.cli.completion import run_dirs
from grpo_hpc.observe.jsonl import json_text


@click.command("cancel", short_help="End a run for good.")
@click.argument("run_dir", metavar="RUN_DIR", shell_complete=run_dirs)
@click.option(
    "--json", "as_json", is_flag=True, help="Print what `status --json` prints, afterwards; a list of it for a sweep."
)
def command(run_dir: str, as_json: bool) -> int:
    """End the run in RUN_DIR, or all runs of the sweep there: what waits leaves the queue, what runs saves and stops.

    Nothing of it starts again by itself. Under Slurm this is scancel, and the site's KillWait says how long a run may
    take to save; here it is 30 seconds. A run that is over stays as it is. Returns when the processes are gone, with
    exit code 1 if they are not gone after two minutes. `grpo-hpc resume` goes on from the newest checkpoint.
    """
    from grpo_hpc.runs.cancelling import cancel
    from grpo_hpc.runs.standing import LIVE, Records, standings
    from grpo_hpc.runs.sweep import Sweep, runs_at

    runs = runs_at(run_dir)
    ended = cancel(runs)
    found = standings([Records.read(run) for run in runs])
    if as_json:
        facts = [state.to_dict() for state in found]
        click.echo(json_text(facts if Sweep.at(run_dir) else facts[0], indent=2))
    for run, state in zip(runs, found, strict=True) if not as_json else ():
        if state.state in LIVE:
            click.echo(f"{state.name} has been asked to save and stop, but is {state.state} still: {state.detail}")
        elif run in ended:
            click.echo(f"{state.name}: {state.state} after step {state.step} ({state.detail})")
        else:
            click.echo(f"{state.name} is over already: {state.state}")
    return int(any(state.state in LIVE for state in found))
