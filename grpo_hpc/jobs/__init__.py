"""From a plan to processes: run directory, lock file, checks before the start, and the launcher of this machine."""
