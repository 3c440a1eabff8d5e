"""docs/first_job.md: its commands, in their order, against the cluster of this machine, with the real trainer."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from shlex import quote

import yaml
from lightruns import PROFILE, ROOT, contained, everything
from runfiles import write_run
from tiny import save_tiny_model

from grpo_hpc.runs.attempts import history
from grpo_hpc.runs.run_dir import RunDir

# What cannot be done as it stands here: the clone is this checkout, installed already; the image is small, made from
# Debian packages, and shows this machine's Python; what is edited by hand is a profile for that and a run of a tiny
# model on 2 x 1 ranks (test_trainer.py has 2 x 2).
REPLACED = {
    "git clone https://example.org/grpo-hpc": "mkdir grpo-hpc",
    "python3.11 -m venv .venv": "mkdir -p .venv/bin",
    ".venv/bin/pip install .": 'printf \'#!/bin/sh\\nexec %s -m grpo_hpc.cli "$@"\\n\' "$PYTHON" > .venv/bin/grpo-hpc'
    " && chmod +x .venv/bin/grpo-hpc",
    "grpo-hpc image build gpu": "cp $IMAGE grpo-hpc-gpu.sif",
    "grpo-hpc config copy qwen2.5_7b first.yaml": "grpo-hpc config copy qwen2.5_7b other.yaml && cp $RUN first.yaml"
    " && cp $PROFILE ~/.config/grpo-hpc/profiles/mysite.yaml",
}


def commands() -> list[str]:
    page = (ROOT / "docs" / "first_job.md").read_text()
    blocks = re.findall(r"^```bash\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


def test_the_commands_of_the_page(tmp_path, request):
    site = {**PROFILE, **contained("apptainer", request), "time_limit": "30:00", "memory": "6000M"}
    site |= {"python": sys.executable, "image": "grpo-hpc-gpu.sif", "preflight": {"free_gib": 0.01}}
    # the small image has no compiler, and not the library that vLLM wants
    site["environment"] |= {"OMP_NUM_THREADS": "1", "TORCHDYNAMO_DISABLE": "1"}
    site["binds"] += ["/usr/lib/x86_64-linux-gnu/libnuma.so.1"]
    (tmp_path / "mysite.yaml").write_text(yaml.safe_dump(site))
    save_tiny_model(tmp_path / "model", layers=2)
    rows = [json.dumps({"prompt": f"Say {n}.", "answer": n}) for n in range(12)]
    (tmp_path / "train.jsonl").write_text("\n".join(rows) + "\n")
    small = {"nodes": 2, "nproc_per_node": 1, "micro_batch_size": 1, "global_batch_size": 16}
    small |= {"train_iters": 3, "save_steps": 1}
    run_file = write_run(
        tmp_path, tmp_path / "model", name="first", output_dir="runs", vllm_kv_cache_gib=0.05, profile="mysite", **small
    )
    (tmp_path / "home").mkdir()
    env = os.environ | {
        "HOME": str(tmp_path / "home"),
        "PYTHON": sys.executable,
        "IMAGE": request.getfixturevalue("apptainer_image"),
        "PROFILE": str(tmp_path / "mysite.yaml"),
        "RUN": str(run_file),
        "COLUMNS": "200",
    }
    asked = commands()
    assert set(asked) >= set(REPLACED)
    script = "\n".join(f"echo {quote('$ ' + line)}\n{REPLACED.get(line, line)}" for line in asked)
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=tmp_path,
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    run = RunDir(tmp_path / "grpo-hpc" / "runs" / "first")
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}\n{everything(run)}"
    assert "#SBATCH --nodes=2" in done.stdout and "apptainer exec" in done.stdout
    assert history(run)[-1].state == "success", everything(run)
    rows = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3]
    assert (run.export / "model.safetensors").exists()
