"""``grpo-hpc resume``."""

from __future__ import annotations

import click


@click.command("resume", short_help="Continue a stopped or crashed run.")
@click.argument("run_dir", metavar="RUN_DIR")
def command(run_dir: str) -> int:
    """Continue the run in RUN_DIR from its newest checkpoint, with the run file that was resolved when it began."""
    from grpo_hpc.jobs.local import require_one_node, run_local
    from grpo_hpc.jobs.preflight import preflight
    from grpo_hpc.jobs.run_dir import RunDir

    run = RunDir.open(run_dir)
    cfg = run.config()
    require_one_node(cfg)
    preflight(cfg)
    return run_local(run)
