"""Completions of a run: what several ranks compressed is one file, going back deletes files, damage is named."""

from __future__ import annotations

import gzip
import json
import math

import pytest

from grpo_hpc.errors import EnvironmentProblem
from grpo_hpc.observe import completions
from grpo_hpc.observe.completions import CompletionLog, first_rows, member, read_completions, steps_with_completions


@pytest.fixture
def folder(tmp_path):
    """Steps 1, 3 and 12, two rows each."""
    log = CompletionLog(tmp_path / "completions")
    for step in (12, 1, 3):
        log.write(step, (member([{"completion": text, "n": step}]) for text in ("ä\n", "b")))
    return tmp_path / "completions"


def test_members_of_several_ranks_are_one_file_that_gzip_reads(folder):
    assert sorted(path.name for path in folder.iterdir()) == [f"step_{n:08d}.jsonl.gz" for n in (1, 3, 12)]
    lines = gzip.decompress((folder / "step_00000003.jsonl.gz").read_bytes()).decode().splitlines()
    assert [json.loads(line) for line in lines] == [{"completion": "ä\n", "n": 3}, {"completion": "b", "n": 3}]


def test_rows_come_back_in_the_order_of_steps_and_with_their_step(folder):
    assert [(row["step"], row["completion"]) for row in read_completions(folder)] == [
        (step, text) for step in (1, 3, 12) for text in ("ä\n", "b")
    ]
    assert [row["n"] for row in read_completions(folder, 3)] == [3, 3]
    assert list(read_completions(folder.parent / "none")) == []


def test_a_rewind_deletes_later_steps_and_what_is_half_written(folder):
    (folder / ".step_00000001.jsonl.gz.77").write_bytes(b"half")
    (folder / "notes.txt").write_text("a person's own")
    CompletionLog(folder).rewind(3)
    assert sorted(path.name for path in folder.iterdir()) == [
        "notes.txt",
        "step_00000001.jsonl.gz",
        "step_00000003.jsonl.gz",
    ]
    CompletionLog(folder).rewind(0)
    assert steps_with_completions(folder) == []
    CompletionLog(folder.parent / "none").rewind(0)


def test_a_step_is_written_anew_or_stays_as_it_was(folder):
    CompletionLog(folder).write(3, [member([{"n": 30}])])
    assert [row["n"] for row in read_completions(folder, 3)] == [30]

    def breaks_off():
        yield member([{"n": 300}])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        CompletionLog(folder).write(3, breaks_off())
    assert [row["n"] for row in read_completions(folder, 3)] == [30]
    assert len(list(folder.iterdir())) == 3


def test_equal_rows_give_equal_bytes_and_nothing_that_is_no_json(folder):
    rows = [{"reward": math.nan, "logprobs": [-math.inf, 0.1], "text": "a\ud800b"}]
    assert member(rows) == member(rows)
    assert gzip.decompress(member(rows)) == b'{"reward": null, "logprobs": [null, 0.1], "text": "a?b"}\n'
    CompletionLog(folder).write(4, [member([])])
    assert list(read_completions(folder, 4)) == []


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-9],
        lambda data: data[:20] + bytes([data[20] ^ 255]) + data[21:],
        lambda data: b"no gzip",
        lambda data: data + b"behind",
        lambda data: gzip.compress(b'{"n": 3}\n{"n"\n'),
        lambda data: gzip.compress(b"[1]\n"),
        lambda data: gzip.compress(b'{"n": "\xff"}\n'),
    ],
)
def test_a_damaged_file_is_named_and_the_others_can_be_read(folder, damage):
    path = folder / "step_00000003.jsonl.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(EnvironmentProblem, match=r"step_00000003\.jsonl\.gz is damaged"):
        list(read_completions(folder, 3))
    assert len(list(read_completions(folder, 12))) == 2


def test_a_row_that_never_ends_costs_no_memory(folder, monkeypatch):
    """A file of a kilobyte may stand for a gigabyte."""
    monkeypatch.setattr(completions, "_LONGEST_ROW", 1000)
    (folder / "step_00000007.jsonl.gz").write_bytes(gzip.compress(b'{"a": "' + b"x" * 10_000 + b'"}\n'))
    with pytest.raises(EnvironmentProblem, match=r"step_00000007\.jsonl\.gz is damaged"):
        list(read_completions(folder, 7))


def test_a_step_that_has_no_file_is_told_which_there_are(folder):
    with pytest.raises(EnvironmentProblem) as caught:
        list(read_completions(folder, 2))
    assert "step_00000002.jsonl.gz does not exist" in str(caught.value)
    assert "3 files, of the steps 1 to 12" in str(caught.value)


def test_the_first_rows_of_several_members():
    parts = [member([]), member({"n": k} for k in range(3)), member([{"n": 3}])]
    assert [row["n"] for row in first_rows(parts, 2)] == [0, 1]
    assert [row["n"] for row in first_rows(parts, 9)] == [0, 1, 2, 3]
