"""``python -m grpo_hpc.cli`` is the same as ``grpo-hpc``."""

from __future__ import annotations

from grpo_hpc.cli import main

if __name__ == "__main__":
    main()
