"""``python -m grpo_hpc.train RUN_DIR`` under torchrun.

Imports happen inside the guard: saving a distributed checkpoint starts a helper process that imports this module.
"""

from __future__ import annotations

if __name__ == "__main__":
    import sys

    from grpo_hpc.train.entry import main

    sys.exit(main(sys.argv[1]))
