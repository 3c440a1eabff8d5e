"""Reading rows: every accepted form, and what people read when a row is wrong."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from grpo_hpc.data.rows import Row, check_rows, read_rows
from grpo_hpc.errors import ConfigError

CHAT = [{"role": "user", "content": "hello"}]


def write(path, *rows):
    path.write_text(
        "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), encoding="utf-8"
    )
    return path


def message_of(path):
    with pytest.raises(ConfigError) as caught:
        read_rows(path)
    return str(caught.value)


def test_messages_columns_and_ids(tmp_path):
    rows = read_rows(
        write(tmp_path / "a.jsonl", {"messages": CHAT, "answer": 3, "prompt": "kept"}, {"id": 7, "prompt": "p"})
    )
    assert (rows[0].prompt_id, rows[0].messages, rows[0].columns) == ("a:1", CHAT, {"answer": 3, "prompt": "kept"})
    assert (rows[1].prompt_id, rows[1].messages) == ("7", [{"role": "user", "content": "p"}])
    assert check_rows(tmp_path / "a.jsonl") == 2


def test_a_system_message_is_put_in_front_of_chats_without_one(tmp_path):
    own = [{"role": "system", "content": "own"}, *CHAT]
    file = write(tmp_path / "a.jsonl", {"messages": CHAT}, {"messages": own}, {"prompt": "p"})
    rows = read_rows(file, system="Be brief.")
    brief = {"role": "system", "content": "Be brief."}
    assert [row.messages for row in rows] == [[brief, *CHAT], own, [brief, {"role": "user", "content": "p"}]]
    assert read_rows(file)[0].messages == CHAT


def test_the_answer_at_the_end_is_removed_and_only_that(tmp_path):
    chat = [*CHAT, {"role": "assistant", "content": "a"}, {"role": "user", "content": "b"}]
    path = write(tmp_path / "a.jsonl", {"prompt": [*chat, {"role": "assistant", "content": "c"}]})
    assert read_rows(path)[0].messages == chat


def test_blank_lines_count_as_lines_but_not_as_rows(tmp_path):
    path = write(tmp_path / "a.jsonl", "", {"prompt": "x"}, "")
    assert [row.prompt_id for row in read_rows(path)] == ["a:2"]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ('{"prompt": "x"', "is not JSON"),
        ("[1]", "is a JSON list, not an object"),
        ({"question": "x"}, "has no 'messages' or 'prompt', only 'question'"),
        ({"messages": "x"}, "has a 'messages' that is a text"),
        ({"messages": []}, "is an empty list"),
        ({"messages": ["x"]}, "messages[0] that is a text"),
        ({"messages": [{"role": "human", "content": "x"}]}, "messages[0].role 'human'; known are"),
        ({"messages": [{"role": "user"}]}, "messages[0].content that is missing"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content that is a number"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "holds nothing but an answer"),
        ({"messages": [{"role": "system", "content": "x"}]}, "ends with the role 'system'"),
        ({"prompt": "x", "id": 1.5}, "'id' that is a number"),
        ({"prompt": "x", "completions": 1}, "a column 'completions'"),
    ],
)
def test_a_wrong_row_is_named_with_its_line(tmp_path, row, said):
    text = message_of(write(tmp_path / "a.jsonl", {"prompt": "good"}, row))
    assert "a.jsonl:2: " in text
    assert said in text


def test_text_that_is_not_utf8(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"prompt": "\xff"}\n')
    assert "a.jsonl:1: is not UTF-8" in message_of(path)


def test_only_the_first_mistakes_are_listed_with_the_count_of_all(tmp_path):
    text = message_of(write(tmp_path / "a.jsonl", *["{"] * 8))
    assert "8 rows" in text and "a.jsonl:5" in text and "a.jsonl:6" not in text and "3 more" in text


def test_ids_must_differ(tmp_path):
    text = message_of(write(tmp_path / "a.jsonl", {"prompt": "x", "id": "q"}, {"prompt": "y", "id": "q"}))
    assert "a.jsonl:2: has the id 'q' of row 1 again" in text


def test_paths_that_cannot_be_read(tmp_path):
    write(tmp_path / "train.jsonl", {"prompt": "x"})
    assert "holds: train.jsonl" in message_of(tmp_path / "tran.jsonl")
    assert ".csv" in message_of(write(tmp_path / "a.csv", "x"))
    assert "no rows" in message_of(write(tmp_path / "empty.jsonl"))
    assert "not a readable Parquet file" in message_of(write(tmp_path / "a.parquet", "x"))


def test_parquet_gives_the_same_rows(tmp_path):
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    records = [{"messages": [*CHAT, {"role": "assistant", "content": "a", "name": "n"}], "answer": n} for n in (3, 4)]
    parquet.write_table(arrow.Table.from_pylist(records), tmp_path / "a.parquet")
    rows = read_rows(tmp_path / "a.parquet")
    assert [(row.prompt_id, row.messages, row.columns) for row in rows] == [
        ("a:1", CHAT, {"answer": 3}),
        ("a:2", CHAT, {"answer": 4}),
    ]


def test_reading_json_lines_imports_nothing_heavy(tmp_path):
    path = write(tmp_path / "a.jsonl", {"prompt": "x"})
    code = (
        f"import sys; from grpo_hpc.data.rows import check_rows; check_rows({str(path)!r}); print(sorted(sys.modules))"
    )
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert not {"'torch'", "'pyarrow'", "'datasets'", "'numpy'"} & set(modules.strip("[]\n").split(", "))


def test_a_datasets_folder_gives_the_same_rows(tmp_path):
    datasets = pytest.importorskip("datasets")
    data = datasets.Dataset.from_list([{"prompt": CHAT, "answer": 3}, {"prompt": CHAT, "answer": 4}])
    data.save_to_disk(tmp_path / "one")
    assert read_rows(tmp_path / "one") == [Row("one:1", CHAT, {"answer": 3}), Row("one:2", CHAT, {"answer": 4})]
    datasets.DatasetDict({"train": data}).save_to_disk(tmp_path / "split")
    text = message_of(tmp_path / "split")
    assert "several splits: train" in text and str(tmp_path / "split" / "train") in text
    (tmp_path / "other").mkdir()
    assert "not a folder written by datasets" in message_of(tmp_path / "other")
