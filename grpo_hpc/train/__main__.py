"""``python -m grpo_hpc.train RUN_DIR`` under torchrun.

Imports happen inside the guard: saving a distributed checkpoint starts a helper process that imports this module.
"""

from __future__ import annotations

if __name__ == "__main__":
    import os
    import sys

    from grpo_hpc.redaction import redact_output
    from grpo_hpc.runs.rank_log import redirect_output
    from grpo_hpc.runs.run_dir import RunDir

    run_dir = RunDir.open(sys.argv[1])
    redirect_output(RunDir.rank_log(run_dir.latest_attempt(), int(os.environ["RANK"])))
    redact_output()

    from grpo_hpc.train.entry import main  # after the redirection: importing it is not quiet

    sys.exit(main(run_dir))
