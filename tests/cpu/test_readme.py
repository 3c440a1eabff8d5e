"""README.md: the commands of "Using it", as they stand and in their order.

What they are run on is smaller: configs/quickstart.yaml is one of a tiny model and one step.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import yaml
from runfiles import write_run
from tiny import save_tiny_model

ROOT = Path(__file__).parents[2]
WITHOUT_MODEL = "grpo-hpc submit qwen2.5_7b cluster.profile=mysite"


LASTING = {"grpo-hpc view"}
"""What lasts until Ctrl-C."""


def look_at(line: str, folder: Path, env: dict[str, str]) -> None:
    """Open the address that a server prints, and end it."""
    unbuffered = env | {"PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        "exec " + line, shell=True, cwd=folder, env=unbuffered, stdout=subprocess.PIPE, text=True
    ) as server:
        address = next(found[0] for said in server.stdout if (found := re.search(r"http://\S+", said)))
        with urllib.request.urlopen(address, timeout=30) as page:
            assert page.status == 200 and b"<html" in page.read()
        server.send_signal(signal.SIGINT)
        assert server.wait(30) in (0, 130)


def commands() -> list[str]:
    (block,) = re.findall(r"^## Using it\n\n```bash\n(.*?)^```$", (ROOT / "README.md").read_text(), re.M | re.S)
    return [line.partition(" #")[0].rstrip() for line in block.splitlines()]


def test_the_commands_of_the_page(tmp_path):
    save_tiny_model(tmp_path / "model", layers=2)
    small = {"train_iters": 1, "vllm_kv_cache_gib": 0.05, "output_dir": "runs"}
    made = write_run(tmp_path, tmp_path / "model", name="quickstart", **small)
    rows = [json.dumps({"prompt": f"Say {n}.", "answer": n}) for n in range(8)]
    (tmp_path / "train.jsonl").write_text("\n".join(rows) + "\n")
    (tmp_path / "configs").mkdir()
    shutil.move(made, tmp_path / "configs" / "quickstart.yaml")
    profiles = tmp_path / "profiles"
    profiles.mkdir()
    site = {"executor": "slurm", "gpus_per_node": 8, "gpu": "h200", "time_limit": "12:00:00"}
    (profiles / "mysite.yaml").write_text(yaml.safe_dump(site))
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "grpo-hpc"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m grpo_hpc.cli "$@"\n')
    program.chmod(0o755)
    env = os.environ | {
        "PATH": f"{program.parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "GRPO_HPC_PROFILES": str(profiles),
    }
    asked = commands()
    assert WITHOUT_MODEL in asked and len(asked) >= 11
    for line in asked:
        if line in LASTING:
            look_at(line, tmp_path, env)
            continue
        done = subprocess.run(line, shell=True, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
        said = f"{line}\n{done.stdout}\n{done.stderr}"
        if line == WITHOUT_MODEL:
            assert done.returncode == 2, said
            assert "the model folder models/Qwen2.5-7B-Instruct does not exist" in done.stderr, said
        else:
            assert done.returncode == 0, said
    assert (tmp_path / "runs" / "quickstart" / "export" / "model.safetensors").exists()
