"""The trainer itself on Slurm: Megatron and vLLM on 2 nodes x 2 ranks, with a tiny model, disturbed and undisturbed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import yaml
from lightruns import PROFILE, ROOT, ended, everything, wait_for
from runfiles import write_run
from tiny import save_tiny_model

from grpo_hpc.cluster import slurm
from grpo_hpc.runs.run_dir import RunDir

STEPS = 12  # enough to be still at work when Slurm has made up its mind
PLUGINS = ROOT / "tests" / "cpu" / "plugins.py"


def submitted(folder: Path, name: str, keys: dict[str, object] | None = None, **profile: object) -> RunDir:
    """A run handed to Slurm by the command line, as a person does it."""
    site = {"python": sys.executable, **PROFILE, "memory": "6000M", "environment": {"OMP_NUM_THREADS": "1"}, **profile}
    (folder / f"{name}-site.yaml").write_text(yaml.safe_dump(site | {"preflight": {"enabled": True, "free_gib": 0.01}}))
    usual: dict[str, object] = {
        "nodes": 2,
        "nproc_per_node": 2,
        "micro_batch_size": 1,
        "global_batch_size": 16,
        "train_iters": STEPS,
        "save_steps": 1,
        "vllm_kv_cache_gib": 0.05,
        "reward_funcs": [f"{PLUGINS}:early_letters"],
        "profile": str(folder / f"{name}-site.yaml"),
    }
    run_file = write_run(folder, folder / "model", name=name, **(usual | (keys or {})))
    command = [sys.executable, "-m", "grpo_hpc.cli", "submit", run_file]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return RunDir.open(folder / "runs" / name)


def losses(run: RunDir) -> dict[int, tuple[float, float, float]]:
    """Loss, gradient norm and reward of every step; each step once."""
    rows = [json.loads(line) for line in run.metrics.read_text().splitlines()] if run.metrics.exists() else []
    found = [(row["step"], (row["loss"], row["grad_norm"], row["reward/mean"])) for row in rows if "loss" in row]
    assert len(dict(found)) == len(found)
    return dict(found)


def with_model(folder: Path) -> None:
    save_tiny_model(folder / "model", layers=2)
    rows = [json.dumps({"prompt": f"Say {n}.", "answer": n}) for n in range(12)]
    (folder / "train.jsonl").write_text("\n".join(rows) + "\n")


def test_servers_on_a_node_of_their_own_sample_for_the_trainer(tmp_path):
    with_model(tmp_path)
    keys = {"nodes": 1, "vllm_mode": "server", "vllm_server_nodes": 1, "train_iters": 3, "save_steps": None}
    run = submitted(tmp_path, "served", keys)
    (attempt,) = ended(run, 1, 400)
    assert attempt.state == "success", everything(run)
    rows = [row for row in map(json.loads, run.metrics.read_text().splitlines()) if "loss" in row]
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert all(row["mismatch/logprob_abs_diff"] < 1e-3 for row in rows), "the servers hold the weights of every step"
    assert all(row["sync/tensors_compared"] > 0 for row in rows)


def test_a_run_that_loses_a_server_saves_and_goes_on_with_others(tmp_path):
    with_model(tmp_path)
    keys = {"nodes": 1, "vllm_mode": "server", "vllm_server_nodes": 1, "train_iters": 8, "save_steps": None}
    run = submitted(tmp_path, "lost", keys)
    wait_for(lambda: len(losses(run)) >= 2, "two steps", 300)
    subprocess.run(["pkill", "-KILL", "-f", "rollout.server --host .* --seed 43"], check=True)
    first, second = ended(run, 2, 400)
    assert (first.state, second.state) == ("crash", "success"), everything(run)
    assert first.reason.startswith("server 1 on node2 ended: "), first.reason
    assert 0 < first.last_step == second.first_step, "what was learned was saved without save_steps"
    assert sorted(losses(run)) == list(range(1, 9))


def test_a_preempted_run_ends_with_the_losses_of_an_undisturbed_one(tmp_path):
    with_model(tmp_path)
    undisturbed = submitted(tmp_path, "undisturbed")
    (attempt,) = ended(undisturbed, 1, 300)
    assert attempt.state == "success", everything(undisturbed)

    run = submitted(tmp_path, "preempted", partition="low")
    wait_for(lambda: len(losses(run)) >= 2, "two steps", 300)
    slurm.call(["sbatch", "-p", "high", "-N4", "--exclusive", "--output=/dev/null", "--wrap", "sleep 1"])
    first, second = ended(run, 2, 400)
    assert (first.state, second.state) == ("preempted", "success"), everything(run)
    assert 0 < first.last_step == second.first_step < STEPS
    assert losses(run) == losses(undisturbed)
    assert sorted(losses(run)) == list(range(1, STEPS + 1))
