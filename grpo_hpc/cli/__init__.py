"""The command line: parses, calls, prints. One module per command, imported when the command is called."""

from __future__ import annotations

from grpo_hpc.cli.main import main

__all__ = ["main"]
