"""TensorBoard, wandb and SwanLab: what is logged is read back from their own files, and a resumed run goes on."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from grpo_hpc.config import load_run
from grpo_hpc.errors import EnvironmentProblem
from grpo_hpc.html_page import COLOURS
from grpo_hpc.observe.history import History
from grpo_hpc.observe.phase_picture import phase_picture
from grpo_hpc.observe.reporters import Report, open_reporters, plan_figures, run_id
from grpo_hpc.observe.sinks import MetricSinks
from grpo_hpc.plan.make import make_plan

ROOT = Path(__file__).parents[3]
KEY = "0123456789abcdef0123456789abcdef01234567"

# A process of its own: the packages take over signals and exits. Two starts of one run, the second resumed at step 2.
TWO_STARTS = """
import sys, time
from pathlib import Path
from grpo_hpc.observe.reporters import Report, open_reporters
from grpo_hpc.observe.sinks import MetricSinks

folder, both = Path(sys.argv[1]), ("wandb", "swanlab")
report = Report(folder, {"algorithm": {"beta": 0.04}}, dict.fromkeys(both, "maths"), dict.fromkeys(both, "first"), True)
for start, value in ((0, 0.5), (2, 5.0)):
    sinks = MetricSinks(folder / "metrics.jsonl", open_reporters(both, report), sys.exit)
    sinks.rewind(start)
    for step in range(start + 1, 4):
        sinks.completions(step, [{"messages": [{"content": "What?"}], "completion": "</td>" * 2000, "reward": 1.0}])
        sinks.log(step, {"loss": value, "rewards/exact_number/mean": 0.25, "kl": float("nan"), "time/step": 1.0})
    sinks.close()
    time.sleep(1.1)  # both name their folders by the second
"""


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    env = os.environ | {"WANDB_API_KEY": KEY, "SWANLAB_API_KEY": KEY[:21], "HOME": str(folder / "home")}
    env |= {"WANDB__DISABLE_STATS": "true", "SWANLAB_PROBE__MONITOR": "false"}
    done = subprocess.run([sys.executable, "-c", TWO_STARTS, str(folder)], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


def records(path):
    """The records of a file in LevelDB's log format behind a head of seven bytes, as both packages write it."""
    data, at, record = path.read_bytes(), 7, b""
    while at < len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        length, kind = struct.unpack_from("<HB", data, at + 4)
        record += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            yield record
            record = b""


def wandb_runs(folder):
    from wandb.proto.wandb_internal_pb2 import Record

    for path in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        found = [Record.FromString(data) for data in records(path)]
        run = next(r.run for r in found if r.HasField("run"))
        rows = [
            {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in r.history.item}
            for r in found
            if r.HasField("history")
        ]
        yield run, rows


def test_wandb(written):
    runs = list(wandb_runs(written))
    assert [run.run_id for run, _ in runs] == [run_id(written)] * 2
    assert {(run.project, run.display_name) for run, _ in runs} == {("maths", "first")}
    first, second = ([(row["_step"], row["loss"]) for row in rows] for _, rows in runs)
    assert first == [(1, 0.5), (2, 0.5), (3, 0.5)] and second == [(3, 5.0)]
    assert runs[0][1][0]["rewards/exact_number/mean"] == 0.25
    assert "NaN" in json.dumps(runs[0][1][0]["kl"])
    (table, *_) = sorted(written.glob("wandb/offline-run-*/files/media/table/completions_1_*.json"))
    shown = json.loads(table.read_text())
    assert shown["columns"][:3] == ["prompt", "completion", "reward"]
    assert shown["data"][0][0] == "What?" and 4000 < len(shown["data"][0][1]) < 4020 and shown["data"][0][2] == 1.0
    assert len(list(written.glob("wandb/offline-run-*/files/media/images/phases_*.png"))) == 2, "one for each start"


def swanlab_runs(folder):
    from swanlab.proto.swanlab.record.v1.record_pb2 import Record

    for path in sorted(folder.glob("swanlog/run-*/*.swanlab")):
        found = [Record.FromString(data) for data in records(path)]
        run = next(r.start for r in found if r.HasField("start"))
        yield run, [(r.scalar.step, r.scalar.key, r.scalar.value.number) for r in found if r.HasField("scalar")]


def test_swanlab(written):
    runs = list(swanlab_runs(written))
    assert [run.id for run, _ in runs] == [run_id(written)] * 2
    assert {(run.project, run.name) for run, _ in runs} == {("maths", "first")}
    first, second = ([(step, value) for step, key, value in rows if key == "loss"] for _, rows in runs)
    assert first == [(1, 0.5), (2, 0.5), (3, 0.5)] and second == [(3, 5.0)]
    assert (1, "rewards/exact_number/mean", 0.25) in runs[0][1]
    assert {key for _, key, _ in runs[0][1]} == {"loss", "rewards/exact_number/mean", "kl", "time/step"}
    texts = [
        path.read_text()
        for path in written.glob("swanlog/run-*/**/*")
        if path.is_file() and b"    What?" in path.read_bytes()
    ]
    assert texts


def test_no_key_lands_in_the_run_directory(written):
    everything = [
        path for path in written.rglob("*") if path.is_file() and "home" not in path.relative_to(written).parts
    ]
    assert len(everything) > 8
    for path in everything:
        assert KEY[:21].encode() not in path.read_bytes(), path


@pytest.mark.parametrize("name", ["wandb", "swanlab"])
def test_a_missing_package_and_what_to_do(name, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(EnvironmentProblem, match=f"pip install {name}"):
        open_reporters([name], Report(tmp_path))


def test_a_reporter_that_fails_is_left_out_and_the_run_goes_on(tmp_path):
    class Failing:
        calls = 0

        def log(self, step, metrics):
            Failing.calls += 1
            raise OSError("no route to host")

    said = []
    sinks = MetricSinks(tmp_path / "metrics.jsonl", [Failing()], said.append)
    for step in (1, 2):
        sinks.log(step, {"loss": 1.0})
    sinks.close()
    assert Failing.calls == 1 and said == ["Failing failed and gets no more metrics: no route to host"]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2


def test_a_plan_is_shown_without_its_ranks():
    cfg = load_run(ROOT / "configs" / "quickstart_gpu.yaml")
    found = plan_figures(make_plan(cfg).to_dict())
    assert found["schedule"]["global_batch_size"] == cfg.batch.global_batch_size
    assert found["estimate"]["step"] > 0 and "ranks" not in found["topology"]
    assert plan_figures({"estimate": None})["estimate"]["verdict"] is None


def test_the_picture_of_phases():
    history = History()
    assert phase_picture(history) is None
    for step in range(1, 501):
        history.add(step, {"time/step": 10.0 if step > 250 else 5.0, "time/rollout": 4.0, "time/train": 1.0})
    pixels = phase_picture(history)
    assert pixels.shape == (200, 800, 3)
    blue, orange, grey = (
        [int(colour[at : at + 2], 16) for at in (1, 3, 5)] for colour in (COLOURS[0], COLOURS[1], COLOURS[7])
    )
    column = pixels[:, 799]
    assert [row.tolist() for row in column[[199, 121, 119, 101, 99, 0]]] == [blue, blue, orange, orange, grey, grey]
    assert pixels[0, 0].tolist() == [255, 255, 255] and pixels[101, 0].tolist() == orange
