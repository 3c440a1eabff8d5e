"""What somebody has changed in the run file of a run directory since its last start, and whether that can be obeyed."""

from __future__ import annotations

from typing import Any

from grpo_hpc.config import RunConfig, dump_run, load_run
from grpo_hpc.config.on_resume import bound_by, changes
from grpo_hpc.errors import ConfigError
from grpo_hpc.files import write_atomically
from grpo_hpc.runs.run_dir import RunDir

Changes = dict[str, tuple[Any, Any]]
"""Full names of the keys that have changed, with both values."""


def require_obeyed(run_dir: RunDir, wanted: RunConfig, alone: bool = True) -> Changes:
    """What ``wanted`` changes of the run file as it was at the last start; nothing is written.

    Args:
        alone: as in :func:`grpo_hpc.config.on_resume.bound_by`.

    Raises:
        ConfigError: a key has changed that no later start can obey; all of them are named.
    """
    started = run_dir.started_file
    before = load_run(started if started.is_file() else run_dir.run_file)  # an older version wrote none
    found = changes(before, wanted)
    bound = {key: why for key in found if (why := bound_by(key, before, alone))}
    if bound:
        lines = [f"  {key}: {found[key][0]} -> {found[key][1]}; {why}" for key, why in sorted(bound.items())]
        raise ConfigError(
            "\n".join([f"{run_dir.run_file} has changed, and the run cannot obey that any more:", *lines]),
            _way_out(run_dir),
        )
    return dict(sorted(found.items()))


def _way_out(run_dir: RunDir) -> str:
    if not run_dir.job_file.exists() and not any(run_dir.path.glob("attempt_*")):
        return "It was never started: submit it again with them, --fresh moves this directory away."
    return "Set them back, or submit another run. To another cluster: grpo-hpc resume RUN_DIR --profile NAME."


def accept_changes(run_dir: RunDir, wanted: RunConfig | None = None, alone: bool = True) -> Changes:
    """Take the run file as it is, or ``wanted`` in its place, for what the run is started with from now on.

    Raises:
        ConfigError: as :func:`require_obeyed`, and nothing is written.
    """
    present = run_dir.config()
    found = require_obeyed(run_dir, wanted or present, alone)
    if wanted is not None and wanted != present:
        write_atomically(run_dir.run_file, dump_run(wanted))
    if found or not run_dir.started_file.is_file():
        write_atomically(run_dir.started_file, run_dir.run_file.read_text())
    return found
