from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from grpo_hpc.cli import main
from grpo_hpc.config import load_run

ROOT = Path(__file__).parents[3]
QUICKSTART = "configs/quickstart.yaml"
WRITTEN = {"run.yaml", ".started.yaml", "plan.json", "lock.json", "cluster.yaml", "job.sh"}
HEAVY = {"torch", "vllm", "megatron", "transformers", "datasets", "numpy", "matplotlib"}


@pytest.fixture(autouse=True)
def in_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def run(*args: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(list(args))
    code = caught.value.code
    assert isinstance(code, int)
    return code


def test_plan_prints_tables(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("plan", QUICKSTART, "model.path=nowhere") == 0
    out = capsys.readouterr().out
    assert "node 0" in out
    assert "Batch schedule: 20 optimizer steps" in out


def test_plan_json_is_json_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("plan", QUICKSTART, "--json", "train_iters=7") == 0
    assert json.loads(capsys.readouterr().out)["schedule"]["train_iters"] == 7


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["plan", QUICKSTART, "micro_batch_size=3"], "batch.micro_batch_size: 2 or 4 (now 3)"),
        (["plan", "configs/nowhere.yaml"], "does not exist"),
        (["plan", QUICKSTART, "--jason"], "--json"),
        (["plan", QUICKSTART, "--search", "--nodes", "5..1"], "FROM..TO"),
        (["plan", QUICKSTART, "--nodes", "2"], "belong to --search"),
        (["plna"], "Did you mean 'plan'?"),
        (["resume", "runs/nowhere"], "is not a run directory"),
        (["submit", QUICKSTART, "vllm_mode=server"], "servers need nodes of their own"),
        (["submit", QUICKSTART, "nodes=2", "global_batch_size=128"], "this machine only"),
        (["submit", QUICKSTART, "tensor_model_parallel_size=2"], "cannot be cut"),
    ],
)
def test_user_errors_give_2_and_one_message(
    args: list[str], expected: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    target = [f"output_dir={tmp_path}"] if args[0] == "submit" else []
    assert run(*args, *target) == 2
    captured = capsys.readouterr()
    assert expected in captured.err
    assert "Traceback" not in captured.err
    assert captured.out == ""
    assert list(tmp_path.iterdir()) == []


def test_dry_run_writes_the_run_directory_and_shows_its_script(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run("submit", QUICKSTART, "--dry-run", f"output_dir={tmp_path}") == 0
    out = capsys.readouterr().out
    folder = tmp_path / "quickstart"
    assert f"Run directory: {folder}" in out
    assert (folder / "job.sh").read_text() in out
    assert {path.name for path in folder.iterdir()} == WRITTEN


def test_what_the_plan_decides_stands_in_the_run_directory(tmp_path: Path) -> None:
    file = QUICKSTART.replace("quickstart", "quickstart_gpu")
    keys = ["--dry-run", f"output_dir={tmp_path}", "vllm_gpu_memory_utilization=null", "gpu=h200"]
    assert run("submit", file, *keys) == 0
    rollout = load_run(str(tmp_path / "quickstart_gpu" / "run.yaml")).rollout
    assert rollout.vllm_kv_cache_gib is not None and "vllm_gpu_memory_utilization" not in rollout.model_fields_set


def test_plan_shows_the_script_that_submit_writes(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    changes = [f"output_dir={tmp_path}", "cluster.profile=slurm"]
    assert run("plan", QUICKSTART, "--dry-run", *changes) == 0
    shown = capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []
    assert run("submit", QUICKSTART, "--dry-run", *changes) == 0
    script = (tmp_path / "quickstart" / "job.sh").read_text()
    assert script.startswith("#!/bin/bash\n#SBATCH --job-name=quickstart\n")
    assert shown.endswith(script)


def test_plan_and_submit_say_when_a_step_is_longer_than_a_job_has_to_save(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "site.yaml").write_text("executor: slurm\ntime_limit: 1:00:00\nsave_before_s: 1\n")
    changes = [f"cluster.profile={tmp_path}/site.yaml", f"output_dir={tmp_path}"]
    file = QUICKSTART.replace("quickstart", "qwen3_8b")
    for words in (["plan"], ["submit", "--dry-run"]):
        assert run(*words, file, *changes) == 0
        assert "save_before_s of the cluster profile" in " ".join(capsys.readouterr().out.split())


def test_a_plan_is_for_the_nodes_of_the_cluster(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    site = tmp_path / "site.yaml"
    site.write_text("executor: slurm\ngpus_per_node: 2\ngpu_type: l40s\n")
    file = QUICKSTART.replace("quickstart", "qwen3_8b")
    assert run("plan", file, f"cluster.profile={site}") == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "(L40S 48GB)" in shown
    assert "this cannot be started: resources.nproc_per_node is 8, and a node of" in shown
    assert "Use resources.nproc_per_node=2 and more nodes." in shown
    assert (
        run(
            "plan",
            file,
            "--search",
            "nproc_per_node=2",
            "tensor_model_parallel_size=2",
            f"cluster.profile={site}",
            "gpu=h100",
        )
        == 0
    )
    assert "set resources.gpu to l40s" in capsys.readouterr().err
    assert run("plan", file, "cluster.profile=nowhere") == 0
    assert "there is no cluster profile 'nowhere'" in " ".join(capsys.readouterr().out.split())


def test_more_nodes_than_this_machine_are_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run("submit", QUICKSTART, f"output_dir={tmp_path}", "nodes=2", "global_batch_size=256") == 2
    assert "this machine only" in capsys.readouterr().err


def test_submit_without_the_model_writes_nothing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run("submit", QUICKSTART, f"output_dir={tmp_path}", f"model.path={tmp_path}/none") == 2
    assert f"the model folder {tmp_path}/none does not exist" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_gives_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("grpo_hpc.config.load_run", interrupted)
    assert run("plan", QUICKSTART) == 130


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    import grpo_hpc

    assert run("--version") == 0
    assert grpo_hpc.__version__ in capsys.readouterr().out
    assert run("-h") == 0
    out = capsys.readouterr().out
    assert all(name in out for name in ("plan", "submit", "resume"))


@pytest.mark.parametrize("args", [["--help"], ["plan", QUICKSTART], ["plan", QUICKSTART, "--json"]])
def test_commands_start_without_heavy_imports(args: list[str]) -> None:
    program = (
        "import sys; from grpo_hpc.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit as end:\n"
        f"    heavy = {HEAVY} & set(sys.modules)\n"
        "    sys.exit(f'imported {heavy}' if heavy else end.code)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", program, *args], capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("package", ["config", "plan", "jobs", "cli"])
def test_light_packages_import_no_torch(package: str) -> None:
    modules = [
        ".".join(file.relative_to(ROOT).with_suffix("").parts)
        for file in (ROOT / "grpo_hpc" / package).glob("*.py")
        if file.stem != "__main__"
    ]
    program = (
        "import importlib, sys; [importlib.import_module(n) for n in sys.argv[1:]]; sys.exit('torch' in sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    assert modules
    assert subprocess.run([sys.executable, "-c", program, *modules], env=environment).returncode == 0
