"""What the page, the comparison and the list of completions say of runs that were recorded."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from statistics import fmean

import pytest

from grpo_hpc.cli.main import cli as cli_group
from grpo_hpc.html_page import in_script, page
from grpo_hpc.observe.completions import member
from grpo_hpc.observe.sinks import MetricSinks
from grpo_hpc.report.completion_rows import cut, sample, spread
from grpo_hpc.report.differences import differences
from grpo_hpc.report.next_plan import pace_of_run
from grpo_hpc.report.planned_and_measured import advice, memory_lines, time_lines
from grpo_hpc.report.recorded_run import read_runs, short_labels
from grpo_hpc.report.visible import visible
from grpo_hpc.report.where_time_went import seconds_by_phase
from tests.browser.recordings import ROOT, completions_of, record, row

Cli = Callable[..., int]


def data_of(page: Path) -> dict:
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page.read_text(), re.DOTALL)
    return json.loads(text)


def test_a_page_holds_what_was_recorded(tmp_path: Path, cli: Cli) -> None:
    run = record(tmp_path, steps=20)
    assert cli("report", run.path, "-o", tmp_path / "page.html") == 0
    page = tmp_path / "page.html"
    data = data_of(page)
    (entry,) = data["runs"]
    assert entry["metrics"]["steps"] == list(range(1, 21))
    course = entry["metrics"]["courses"]["reward/mean"]
    assert course["at"] is None
    assert course["values"] == pytest.approx([1 - math.exp(-0.1 * step) for step in range(1, 21)], rel=1e-5)
    assert entry["metrics"]["courses"]["eval/exact_number/mean"] == {"at": [0], "values": [0.25]}
    assert entry["metrics"]["courses"]["loss"]["values"][4] is None, "was not finite"
    assert entry["state"] == "success"
    assert next(iter(data["metrics"])) == "reward/mean", "the order of the table of metrics"
    assert "://" not in page.read_text().replace('"http://www.w3.org/2000/svg"', ""), "nothing is fetched"


def test_a_damaged_run_is_named_and_passed_over(tmp_path: Path, cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = record(tmp_path, "good", steps=2), record(tmp_path, "bad", steps=2)
    bad.run_file.write_text("[]")
    assert cli("report", good.path, bad.path, "-o", tmp_path / "page.html") == 0
    assert "passed over" in capsys.readouterr().err
    assert "run.yaml" in data_of(tmp_path / "page.html")["notes"][0]
    assert cli("report", bad.path, "-o", tmp_path / "page.html") == 2
    assert cli("report", good.path, tmp_path / "goof", "-o", tmp_path / "page.html") == 2


NOISE = {
    "empty": b"",
    "list": b"[]",
    "numbers": b'{"estimate": 7, "packages": [1], "step": {}, "t": 1, "event": "phase"}\n',
    "empty parts": b'{"estimate": {"memory": {"phases": {"a": 1}}, "time": {}}, "": {"": {}}}\n',
    "zero": b'{"estimate": {"memory": {"phases": {}}, "time": {"step": 0, "cycle": 0, "phases": {}}}}\n',
    "bytes": b"\xff\xfe\x00\xd8",
    "deep": b"[" * 100_000 + b"\n",
    "large": b'{"step": 1, "event": "metrics", "t": 1e999, "values": {"time/step": 1e999}, "time/step": 1e999}\n',
}


READABLE = {("lock.json", noise) for noise in ("numbers", "empty parts", "zero", "large")}  # of any keys


@pytest.mark.parametrize("noise", NOISE)
def test_damage_costs_what_is_damaged(tmp_path: Path, cli: Cli, capsys: pytest.CaptureFixture[str], noise: str) -> None:
    """Every file of a run in turn: the page is written, beside a whole run, and names what it lacks."""
    whole, hurt = record(tmp_path, "whole", steps=2), record(tmp_path, "hurt", steps=2)
    for name in ("plan.json", "lock.json", "run.yaml", "job.json", "metrics.jsonl", "events.jsonl"):
        good = (hurt.path / name).read_bytes()
        (hurt.path / name).write_bytes(NOISE[noise])
        assert cli("report", hurt.path, whole.path, "-o", tmp_path / "page.html") == 0
        said = capsys.readouterr().err
        assert name.endswith("jsonl") or name in said or "records in" in said or (name, noise) in READABLE, (name, said)
        labels = [run["label"] for run in data_of(tmp_path / "page.html")["runs"]]
        assert labels == (["whole"] if name in ("run.yaml", "job.json") else ["hurt", "whole"])
        assert cli("compare", hurt.path, whole.path) in (0, 2)
        capsys.readouterr()
        (hurt.path / name).write_bytes(good)


def test_a_damaged_file_of_completions_is_named(tmp_path: Path, cli: Cli) -> None:
    run = record(tmp_path, steps=20)
    (run.completions / "step_00000011.jsonl.gz").write_bytes(b"no gzip")
    with (run.completions / "step_00000001.jsonl.gz").open("ab") as file:
        file.write(member([{"messages": "what"}]))
    stale = tmp_path / "page.html.completions" / "run_7_step_1.js"
    stale.parent.mkdir()
    stale.touch()
    assert cli("report", run.path, "-o", tmp_path / "page.html", "--all-completions") == 0
    data = data_of(tmp_path / "page.html")
    assert "step_00000011.jsonl.gz is damaged" in data["notes"][1]
    assert "1 of 9 rows of step 1 in" in data["notes"][0]
    assert {one["step"] for one in data["runs"][0]["completions"]["rows"]} == {1}
    beside = tmp_path / data["beside"] / "run_0_step_1.js"
    assert not stale.exists()
    assert beside.read_text().startswith("loadCompletions(0,1,[{")


@pytest.mark.parametrize("text", ["</script>", "<!--", "\u2028\u2029", "&amp;", "\ud800", 'a"b\\', "\x00"])
def test_data_in_a_script_stay_data(tmp_path: Path, text: str) -> None:
    inside = in_script(json.dumps({text: [text]}, ensure_ascii=text == "\ud800"))
    assert not set("<>&\u2028\u2029") & set(inside)
    assert json.loads(inside) == {text: [text]}
    (tmp_path / "page.html").write_text(page(repr(text), "", script="1", data=json.dumps([text])))
    assert data_of(tmp_path / "page.html") == [text]


def test_samples_are_whole_groups_from_the_whole_run(tmp_path: Path) -> None:
    run = record(tmp_path, steps=200)
    found = sample(run.completions, 48)
    steps = [one["step"] for one in found.rows]
    assert len(found.rows) == 48 and len(set(steps)) == 12
    assert (min(steps), max(steps)) == (1, 191) == (found.steps[0], found.steps[-1])
    groups = {(one["step"], one["position"]) for one in found.rows}
    assert len(groups) * 4 == len(found.rows)
    assert sample(run.completions, 0).rows == []


def test_spread_and_cut() -> None:
    assert spread(range(10), 4) == [0, 3, 6, 9]
    assert spread([1, 2], 4) == [1, 2]
    assert spread([1, 2, 3], 1) == [3]
    long = "a" * 9000 + "b" * 1_000_000
    short = cut({"completion": [long]})["completion"][0]
    assert short.startswith("a" * 8000) and short.endswith("b" * 4000)
    assert "997,000 characters are left out" in short


def test_labels_tell_runs_apart() -> None:
    paths = [Path("/x/a/run"), Path("/x/b/run"), Path("/y/b/run"), Path("/x/other")]
    assert short_labels(paths) == ["a/run", "x/b/run", "y/b/run", "other"]


def test_plan_beside_measurement(tmp_path: Path) -> None:
    ((run,), _) = read_runs([str(record(tmp_path, steps=20).path)])
    times, memory = time_lines(run), memory_lines(run)
    assert [line.what for line in times] == ["sync", "rollout", "reward", "offload", "logprob", "train", "step"]
    by = {line.what: line for line in times}
    assert by["rollout"].measured == 4.0 and by["reward"].planned is None and by["offload"].measured is None
    step = json.loads(run.run_dir.plan_file.read_text())["estimate"]["time"]["step"]
    assert sum(line.planned or 0 for line in times[:-1]) == pytest.approx(step) == by["step"].planned
    assert by["step"].to_dict()["ratio"] == pytest.approx(by["step"].measured / step)
    assert (memory[-1].what, memory[-1].measured) == ("peak", 60.2)
    said = advice(run, times, memory)
    assert any("Completions had 110 tokens on average" in text for text in said)
    assert any(text.startswith("The phase rollout took 4.00 s") for text in said)
    assert any("19 of 79.1 GiB were never used" in text and "max_tokens_per" in text for text in said)


def test_nobody_is_sent_to_a_plan_that_cannot_be_made(tmp_path: Path, cli: Cli) -> None:
    """Of runs on a CPU nothing is planned like them."""
    run = record(tmp_path, steps=20)
    plan = json.loads(run.plan_file.read_text())
    plan["estimate"]["time"] = None
    run.plan_file.write_text(json.dumps(plan))
    ((found,), _) = read_runs([str(run.path)])
    assert not any("--like" in text for text in advice(found, time_lines(found), memory_lines(found)))


def test_the_next_plan_takes_lengths_and_pace_of_a_run(
    tmp_path: Path, cli: Cli, capsys: pytest.CaptureFixture[str]
) -> None:
    run = record(tmp_path, steps=20)
    pace = pace_of_run(str(run.path))
    lengths = [one["tokens"] for step in (11,) for one in completions_of(step)]
    assert pace.lengths.completions[-1] == max(lengths) and pace.lengths.average == round(fmean(lengths))
    assert dict(pace.factors).keys() == {"sync", "rollout", "train"}, "what was planned and measured"
    assert cli("plan", run.run_file, "--like", run.path, "--json") == 0
    estimate = json.loads(capsys.readouterr().out)["estimate"]
    assert estimate["like"]["run"] == "demo"
    seconds = {name: sum(part["seconds"] for part in parts) for name, parts in estimate["time"]["phases"].items()}
    assert seconds["rollout"] == pytest.approx(4.0) and seconds["train"] == pytest.approx(3.0)
    assert seconds["reward"] == pytest.approx(0.25)
    assert cli("plan", run.run_file, "--like", run.path) == 0
    assert "Like the run demo: completions of" in " ".join(capsys.readouterr().out.split())
    assert cli("plan", run.run_file, "--like", run.path, "--search") == 0
    assert "Like the run demo" in capsys.readouterr().err


def test_lengths_without_files_of_completions_come_from_metrics(tmp_path: Path) -> None:
    run = record(tmp_path, steps=20, completions=[])
    sinks = MetricSinks(run.metrics)
    each = {"completions/min_length": 50.0, "completions/mean_length": 200.0, "completions/max_length": 1000.0}
    each |= {
        "throughput/train_tokens_per_s": run.config().batch.global_batch_size * 260 / 3.0,
        "time/train": 3.0,
        "time/step": 8.0,
    }
    for step in range(21, 500):
        sinks.log(step, each)
    lengths = pace_of_run(str(run.path)).lengths
    assert lengths.completions[-1] == 1000 and lengths.completions[0] < 60
    assert lengths.average == pytest.approx(200, rel=0.06)
    assert lengths.prompt is not None and 30 < lengths.prompt < 80, "what sequences had beyond their completions"


@pytest.mark.parametrize("value", [-1.0, 0.0, 1e9, 1e308])
def test_a_plan_like_a_run_with_impossible_numbers_is_made(tmp_path: Path, cli: Cli, value: float) -> None:
    run = record(
        tmp_path, steps=20, completions=[{"tokens": 10**40}, {"tokens": -3}, {"tokens": "x"}, {"tokens": True}]
    )
    sinks = MetricSinks(run.metrics)
    names = ["time/train", "time/reward", "throughput/train_tokens_per_s", "reward/zero_variance_groups"]
    names += [f"completions/{name}_length" for name in ("min", "mean", "max")]
    for step in range(21, 200):
        sinks.log(step, {"time/step": 1.0, **dict.fromkeys(names, value)})
    code = cli("plan", run.run_file, "--like", run.path)
    assert code == 0 or (code == 2 and not 0 < value < 1e8)


@pytest.mark.parametrize("kind", ["no step", "noise", "no run"])
def test_there_is_nothing_to_plan_like(tmp_path: Path, cli: Cli, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    run = record(tmp_path, steps=0 if kind == "no step" else 3)
    if kind == "noise":
        run.metrics.write_bytes(b"\x00\xff{]\n" * 20)
    path = tmp_path / "nowhere" if kind == "no run" else run.path
    assert cli("plan", run.run_file, "--like", path) == 2
    said = capsys.readouterr().err
    assert ("is not a run directory" if kind == "no run" else "has not made one optimizer step") in said


def test_time_before_a_new_start_is_nobodys() -> None:
    marks = [("start", 0), ("rollout", 10), ("train", 15), ("start", 1000), ("rollout", 1020)]
    events = [{"event": "phase", "name": name, "t": t} for name, t in marks]
    spent = seconds_by_phase([*events, {"event": "metrics", "t": 1021}, {"event": "finished", "t": 1025}])
    assert spent == {"start": 30, "rollout": 10}


def test_differences_of_runs(tmp_path: Path, cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    one = record(tmp_path, "one", steps=20)
    other = record(tmp_path, "other", steps=30, rate=0.2, changed=["lr=5e-6"])
    lock = json.loads(other.lock_file.read_text())
    lock["packages"]["numpy"] = "0.1"
    other.lock_file.write_text(json.dumps(lock))
    found = differences(read_runs([str(one.path), str(other.path)])[0])
    assert [(entry.key, entry.values) for entry in found.settings] == [("optimizer.lr", ["1e-05", "5e-06"])]
    assert [entry.key for entry in found.environment] == ["packages.numpy"]
    assert found.step == 20
    reward = next(entry for entry in found.metrics if entry.name == "reward/mean")
    assert reward.at == pytest.approx([1 - math.exp(-2), 1 - math.exp(-4)])
    assert reward.mean[0] == pytest.approx(sum(1 - math.exp(-0.1 * step) for step in range(17, 21)) / 4)

    assert cli("compare", one.path, other.path, "--step", 5, "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert next(entry for entry in said["metrics"] if entry["name"] == "loss")["at"] == [None, None], "not finite"
    assert cli("compare", one.path, other.path) == 0
    lines = capsys.readouterr().out.splitlines()
    assert next(line.split() for line in lines if "optimizer.lr" in line) == ["optimizer.lr", "1e-05", "5e-06"]
    assert next(line.split()[:3] for line in lines if "reward/mean" in line) == ["reward/mean", "0.865", "0.982"]
    assert cli("compare", one.path) == 2


def test_completions_in_a_terminal(tmp_path: Path, cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    run = record(tmp_path, steps=20)

    def said(*options: object) -> str:
        assert cli("completions", run.path, *options) == 0
        return capsys.readouterr().out

    assert said().count("step 11  ") == 8 and "step 1  " not in said()
    assert said("--step", "1..20").count("prompt train:0") == 8
    assert said("--min-reward", 0.5).count("reward 1.000") == 4
    assert said("--max-reward", 0.5, "--step", 1).count("reward 0.000") == 6
    assert said("--grep", r"answer is 4\b").count("completion:") == 2
    rows = [json.loads(line) for line in said("--json", "--limit", 3).splitlines()]
    assert rows == [{"step": 11, **entry} for entry in completions_of(11)[:3]]
    assert cli("completions", run.path, "--grep", "(") == 2
    assert cli("completions", run.path, "--step", "2..9") == 2
    assert "from 1 to 11" in capsys.readouterr().err


def test_every_turn_of_an_episode_in_a_terminal(tmp_path: Path, cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 40, "b": 2}}}
    turns = [
        {"role": "assistant", "reasoning_content": "It is a sum.", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "42"},
        {"role": "assistant", "content": "It is 42."},
    ]
    rows = [row(0, 0, "It is 42.", turns=turns, environment_failure="timeout: 60 s"), row(1, 0, "It is 41.")]
    run = record(tmp_path, steps=1, completions=rows)
    for pattern in ("a sum", '"name": "add"', "42"):
        assert cli("completions", run.path, "--grep", pattern) == 0
        out = capsys.readouterr().out
        assert out.count("step 1") == 1 and out.count("It is 42.") == 1, pattern
        assert all(text in out for text in ("assistant: It is a sum.", '"name": "add"', "tool: 42", "timeout: 60 s"))


def test_a_terminal_obeys_no_completion(tmp_path: Path, cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    hostile = "\x1b[2J\x1b]0;taken\x07 \u202egnp.exe [bold]no markup[/bold]\r\x9b31m\nline\ttab"
    run = record(tmp_path, steps=1, completions=[row(0, 0, hostile, messages=[{"role": "user", "content": hostile}])])
    assert cli("completions", run.path) == 0
    out = capsys.readouterr().out
    assert not set("\x1b\x07\r\x9b\u202e") & set(out)
    assert out.count("\\x1b[2J\\x1b]0;taken\\x07 \\u202egnp.exe [bold]no markup[/bold]\\x0d\\x9b31m\nline") == 2
    assert visible("\ud800") == "\\ud800"


def test_status_draws_any_metric(tmp_path: Path, cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    run = record(tmp_path, steps=20)
    assert cli("status", run.path, "--metric", "kl", "--metric", "loss") == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.split()[:2] == ["kl", "0.0020"] and "█" in line for line in lines)
    assert cli("status", run.path, "--metric", "grad_norms") == 2
    assert "Near it: grad_norm" in capsys.readouterr().err
    assert cli("status", run.path, "--metric", "kl", "--json") == 2


def test_the_page_about_looking_names_what_there_is() -> None:
    """Its commands, their options, and its pictures."""
    text = (ROOT / "docs" / "looking.md").read_text()
    lines = [line.partition("#")[0].split() for line in re.findall(r"^    grpo-hpc (.*)$", text, re.MULTILINE)]
    assert {words[0] for words in lines} == {"report", "view", "status", "compare", "completions"}
    for name, *words in lines:
        known = {option for parameter in cli_group.get_command(None, name).params for option in parameter.opts}
        assert {word for word in words if word.startswith("-")} <= known
    pictures = re.findall(r"\]\((looking/\w+\.png)\)", text)
    assert len(pictures) == 4
    of_readme = re.findall(r"\]\(docs/(looking/\w+\.png)\)", (ROOT / "README.md").read_text())
    assert of_readme
    assert all((ROOT / "docs" / picture).stat().st_size < 150_000 for picture in [*pictures, *of_readme])
