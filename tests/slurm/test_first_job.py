"""docs/first_job.md: its commands, as they stand and in their order, against the cluster of this machine.

The package is installed by them, without torch. A person writes a profile for this cluster and a run of a tiny model on
2 x 1 ranks (test_trainer.py has 2 x 2) into the files that the page asks to edit. The one thing that is not done is to
fetch and install the gigabytes of the image: `apptainer build` gives a small image, made from Debian packages, which
shows this machine's Python; every other call of apptainer is its own.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from shlex import quote

import yaml
from lightruns import PROFILE, ROOT, contained, everything
from runfiles import write_run
from tiny import save_tiny_model

from grpo_hpc.runs.attempts import history
from grpo_hpc.runs.run_dir import RunDir

WRITTEN = {
    "grpo-hpc cluster add mysite": "cp $PROFILE ~/.config/grpo-hpc/profiles/mysite.yaml",
    "grpo-hpc config copy qwen2.5_7b first.yaml": "cp $RUN first.yaml",
}
"""What a person does after the line that begins so."""
APPTAINER = """#!/bin/sh
[ "$1" = build ] || exec {real} "$@"
ls project/grpo_hpc-*.whl requirements.txt pip.conf && cp {image} "$3"
"""


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
    small |= {"train_iters": 4, "save_steps": 1, "reshardable": True, "max_length": 32}
    run_file = write_run(
        tmp_path, tmp_path / "model", name="first", output_dir="runs", vllm_kv_cache_gib=0.05, profile="mysite", **small
    )
    for folder in ("home", "bin"):
        (tmp_path / folder).mkdir()
    build = tmp_path / "bin" / "apptainer"
    image = request.getfixturevalue("apptainer_image")
    build.write_text(APPTAINER.format(real=shutil.which("apptainer"), image=image))
    build.chmod(0o755)
    clone = tmp_path / "grpo-hpc"
    for name in ("grpo_hpc", "configs", "containers", "slurm", "tools"):
        shutil.copytree(ROOT / name, clone / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, clone)
    env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")} | {
        "HOME": str(tmp_path / "home"),
        "XDG_CONFIG_HOME": str(Path.home() / ".config"),  # pip's settings are the machine's
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "PROFILE": str(tmp_path / "mysite.yaml"),
        "RUN": str(run_file),
        "COLUMNS": "200",
    }
    asked = commands()
    script = "\n".join(f"echo {quote('$ ' + line)}\n{line}\n{written_after(line)}" for line in asked)
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
    run = RunDir(clone / "runs" / "first")
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}\n{everything(run)}"
    assert "#SBATCH --nodes=2" in done.stdout and "apptainer exec" in done.stdout
    assert "runs/first was prepared and never started: it has been made anew." in done.stdout
    assert [len(attempt.nodes) for attempt in history(run) if attempt.state == "success"] == [2, 1], everything(run)
    rates = dict.fromkeys((1, 2, 3, 4), 1e-3) | dict.fromkeys((5, 6, 7, 8), 5e-7)
    rows = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    assert {row["step"]: row["learning_rate"] for row in rows if "loss" in row} == rates
    assert (run.export / "model.safetensors").exists() and (clone / "first.html").exists()
    assert [path.name for path in run.checkpoints.iterdir()] == ["step_00000008"], "the others were cleaned up"
    shown = done.stdout.partition("$ grpo-hpc report runs/first")[0].rpartition("$ grpo-hpc status runs/first")[2]
    assert all(fact in shown for fact in ("success", "took", str(run.export), "step_00000008")), shown


def written_after(line: str) -> str:
    return next((edit for begin, edit in WRITTEN.items() if line.startswith(begin)), "")
