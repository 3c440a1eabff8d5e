"""``grpo-hpc cancel``."""

from __future__ import annotations

import json

import click


@click.command("cancel", short_help="End a run for good.")
@click.argument("run_dir", metavar="RUN_DIR")
@click.option("--json", "as_json", is_flag=True, help="Print what `grpo-hpc status --json` prints, afterwards.")
def command(run_dir: str, as_json: bool) -> int:
    """End the run in RUN_DIR: take it out of the queue, or tell it to save and stop. It does not start again by itself.

    Under Slurm this is scancel, and the site's KillWait says how long the run may take to save; here it is 30 seconds.
    A run that is over stays as it is. Returns when the processes are gone, with exit code 1 if they are not gone after
    two minutes. `grpo-hpc resume` goes on from the newest checkpoint.
    """
    from grpo_hpc.jobs.cancel import cancel
    from grpo_hpc.jobs.run_dir import RunDir
    from grpo_hpc.jobs.standing import LIVE, standing

    run = RunDir.open(run_dir)
    ended = cancel([run])
    found = standing(run)
    still = found.state in LIVE
    if as_json:
        click.echo(json.dumps(found.to_dict(), indent=2))
    elif still:
        click.echo(f"{found.name} has been asked to save and stop, but is {found.state} still: {found.detail}")
    elif ended:
        click.echo(f"{found.name}: {found.state} after step {found.step} ({found.detail})")
    else:
        click.echo(f"{found.name} is over already: {found.state}")
    return 1 if still else 0
