"""What somebody has changed in the run file of a run directory since its last start, and whether that can be obeyed."""

from __future__ import annotations

from grpo_hpc.config import load_run
from grpo_hpc.config.on_resume import bound_by, changes
from grpo_hpc.errors import ConfigError
from grpo_hpc.files import write_atomically
from grpo_hpc.runs.run_dir import RunDir


def accept_changes(run_dir: RunDir) -> list[str]:
    """Compare run.yaml with what it was at the last start, which it is from now on.

    Returns:
        what changed, a line for each key.

    Raises:
        ConfigError: a key has changed that no later start can obey; all of them are named.
    """
    if not run_dir.started_file.is_file():  # of an older version
        write_atomically(run_dir.started_file, run_dir.run_file.read_text())
        return []
    before, after = load_run(run_dir.started_file), run_dir.config()
    found = changes(before, after)
    bound = {key: why for key in found if (why := bound_by(key, before))}
    if bound:
        lines = [f"  {key}: {found[key][0]} -> {found[key][1]}; {why}" for key, why in sorted(bound.items())]
        raise ConfigError(
            "\n".join([f"{run_dir.run_file} has changed, and the run cannot obey that any more:", *lines]),
            "Set them back, or submit another run. To another cluster: grpo-hpc resume RUN_DIR --profile NAME.",
        )
    if found:
        write_atomically(run_dir.started_file, run_dir.run_file.read_text())
    return [f"{key}: {old} -> {new}" for key, (old, new) in sorted(found.items())]
