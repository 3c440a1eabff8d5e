"""``grpo-hpc logs``."""

from __future__ import annotations

import select
import sys

import click

from grpo_hpc.cli.completion import run_dirs
from grpo_hpc.observe.jsonl import json_text


@click.command("logs", short_help="Show the log of a run, also while it grows.")
@click.argument("run_dir", metavar="RUN_DIR", shell_complete=run_dirs)
@click.option("-f", "--follow", is_flag=True, help="Go on as the log grows, over every new start, until the run ends.")
@click.option("--rank", type=click.IntRange(min=0), metavar="N", help="The log of this rank.")
@click.option("--server", type=click.IntRange(min=0), metavar="N", help="The log of this vLLM server.")
@click.option("--attempt", type=click.IntRange(min=1), metavar="N", help="The log of this start. [default: the newest]")
@click.option("-n", "--lines", type=click.IntRange(min=1), metavar="N", help="The last N lines of what is there.")
@click.option("--json", "as_json", is_flag=True, help="Print each line as a JSON object.")
def command(
    run_dir: str,
    follow: bool,
    rank: int | None,
    server: int | None,
    attempt: int | None,
    lines: int | None,
    as_json: bool,
) -> None:
    """Show the log of the run in RUN_DIR that tells most.

    That is the log of the rank that failed first, else that of rank 0; before rank 0 has written, the launcher's, the
    node check's or Slurm's. The name of the file goes to standard error.

    --json prints one object a line: attempt (null for what Slurm's job wrote before the first), file, line.
    """
    from grpo_hpc.runs.attempts import damaged_attempts
    from grpo_hpc.runs.follow import Wanted, follow_log, read_log
    from grpo_hpc.runs.sweep import one_run_at

    if rank is not None and server is not None:
        raise click.UsageError("--rank and --server name two logs: take one of them")
    run, wanted = one_run_at(run_dir), Wanted(attempt, rank, server)
    for damaged in damaged_attempts(run):
        click.echo(f"passed over: {damaged}", err=True)
    shown = None
    for line in follow_log(run, wanted, lines) if follow else read_log(run, wanted, lines):
        if _nobody_reads():
            return
        if line is None:
            continue
        if as_json:
            click.echo(json_text(line.to_dict()))
        else:
            if line.file != shown:
                click.secho(f"==> {line.file} <==", dim=True, err=True)
                shown = line.file
            click.echo(line.line)


def _nobody_reads() -> bool:
    """The other end of the pipe is closed; otherwise only the next line, if one comes, would tell."""
    try:
        descriptor = sys.stdout.fileno()
    except OSError:
        return False  # no pipe, but what a caller put there
    poll = select.poll()
    poll.register(descriptor, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))
