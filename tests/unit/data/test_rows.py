"""Reading rows: every accepted form, and what people read when a row is wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from grpo_hpc.data.rows import Row, RowCounts, count_rows, read_rows
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
    assert count_rows(tmp_path / "a.jsonl") == RowCounts(2, {"answer": 1, "prompt": 1, "id": 1})


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
        ({"prompt": "x", "images": ["a.png"]}, "a column 'images': media do not reach the model"),
        ({"prompt": "x", "audio": {"path": "a.wav"}}, "a column 'audio': media do not reach the model"),
        ({"prompt": "<image>What is it?"}, "prompt[0].content with the tag <image>: media do not"),
        (
            {"messages": [{"role": "user", "content": "x", "images": ["a.png"]}]},
            "messages[0] with 'images': media do not",
        ),
        ({"prompt": "x", "system": "Be brief."}, "a column 'system', which the policy is not told: make it the first"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "with a part of the type 'image': media do"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}]}]}, "content that is a list"),
        ({"prompt": "x", "tools": {"name": "f"}}, "'tools' that is an object; it must be a list"),
        ({"prompt": "x", "tools": "f"}, "'tools' that is not JSON: Expecting value at column 1; it must be"),
        ({"prompt": "x", "tools": ["f"]}, "'tools' that is a list; it must be a list of objects"),
        ({"prompt": "x", "chat_template_kwargs": "a"}, "'chat_template_kwargs' that is a text"),
        ({"prompt": "x", "chat_template_kwargs": {"tools": []}}, "'tools', which are a column of the data"),
        ({"prompt": "x", "chat_template_kwargs": {"tokenize": 1}}, "'tokenize', which is decided elsewhere"),
        ({"messages": [{"role": "assistant", "content": None}, *CHAT]}, "messages[0].content that is missing"),
        ({"messages": [{"role": "assistant", "tool_calls": "f"}, *CHAT]}, "[0].tool_calls that is a text, not a list"),
        ({"messages": [{"role": "assistant", "tool_calls": ["f"]}, *CHAT]}, "tool_calls[0] that is a text, not an ob"),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"function": {"arguments": "{"}}]}, *CHAT]},
            "messages[0].tool_calls[0].arguments that is not JSON: Expecting property",
        ),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"name": "f", "arguments": "3"}]}, *CHAT]},
            "messages[0].tool_calls[0].arguments that is a number; it must be a JSON object",
        ),
        (r'{"prompt": "a\ud83d"}', "has half a character: '\\ud83d'"),
        (r'{"prompt": "x", "a": {"\ude00\ud83d": 1}}', "has half a character: '\\ude00'"),
        ('{"prompt": "x", "n": ' + "7" * 5000 + "}", "has an integer of more than 4300 digits"),
        ('{"prompt": "x", "n": ' + "[" * 5000 + "]" * 5000 + "}", "is nested too deeply"),
        ('{"prompt": "x", "tools": [{"a": ' + "[" * 700 + "]" * 700 + "}]}", "is nested too deeply"),
    ],
)
def test_a_wrong_row_is_named_with_its_line(tmp_path, row, said):
    text = message_of(write(tmp_path / "a.jsonl", {"prompt": "good"}, row))
    assert "a.jsonl:2: " in text
    assert said in text


def test_pairs_of_escapes_are_one_character(tmp_path):
    assert (
        read_rows(write(tmp_path / "a.jsonl", r'{"prompt": "\ud83d\ude00\u00e4"}'))[0].messages[0]["content"] == "😀ä"
    )


def test_columns_for_media_may_be_empty(tmp_path):
    row = {"prompt": "x", "images": [], "image": None, "videos": ""}
    assert read_rows(write(tmp_path / "a.jsonl", row))[0].messages == [{"role": "user", "content": "x"}]


def test_a_system_column_may_stand_beside_a_system_message(tmp_path):
    chat = [{"role": "system", "content": "Be brief."}, *CHAT]
    rows = read_rows(
        write(tmp_path / "a.jsonl", {"messages": chat, "system": "Be brief."}, {"prompt": "x", "system": ""})
    )
    assert [row.columns["system"] for row in rows] == ["Be brief.", ""]


def test_tools_and_arguments_of_the_template(tmp_path):
    """As a list or as JSON text; nulls are what Parquet fills up with; reward functions get the column as it is."""
    tool = {"type": "function", "function": {"name": "f", "parameters": {"a": {"type": "string", "enum": [None, "b"]}}}}
    padded = {**tool, "function": {**tool["function"], "description": None}}
    given = [
        {"tools": [padded], "chat_template_kwargs": {"enable_thinking": False, "unset": None}},
        {"tools": json.dumps([tool])},
        {"tools": [], "chat_template_kwargs": None},
    ]
    rows = read_rows(write(tmp_path / "a.jsonl", *({"prompt": "x", **columns} for columns in given)))
    assert [row.template for row in rows] == [{"enable_thinking": False, "tools": [tool]}, {"tools": [tool]}, {}]
    assert [row.columns for row in rows] == given


def test_a_tool_call_in_the_history(tmp_path):
    """Its content may be null, and its arguments JSON text, as OpenAI's format has them."""
    calls = [
        {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": "ä"}'}},
        {"name": "g", "arguments": {"b": 1}},
        {"function": {"name": "h", "arguments": ""}},
    ]
    told = {"role": "tool", "content": "3", "tool_call_id": "1"}
    chat = [*CHAT, {"role": "assistant", "content": None, "tool_calls": calls}, told]
    (row,) = read_rows(write(tmp_path / "a.jsonl", {"messages": chat}))
    assert row.messages[1]["content"] == "" and row.messages[2] == told
    assert row.messages[1]["tool_calls"] == [
        {"id": "1", "type": "function", "function": {"name": "f", "arguments": {"a": "ä"}}},
        calls[1],
        {"function": {"name": "h", "arguments": {}}},
    ]


@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_a_json_file_may_be_one_list(tmp_path, mark):
    path = tmp_path / "a.json"
    path.write_text(mark + json.dumps([{"prompt": "x"}, {"prompt": "y", "answer": 3}], indent=1), encoding="utf-8")
    assert [(row.prompt_id, row.columns) for row in read_rows(path)] == [("a:1", {}), ("a:2", {"answer": 3})]
    path.write_text('[{"prompt": "x"}, 3]')
    assert "a.json:2: is a JSON number, not an object" in message_of(path)
    path.write_text('[{"prompt": "x"},\n {"prompt"]')
    assert "a.json is not JSON: Expecting ':' delimiter at line 2, column 11" in message_of(path)
    assert "holds no rows" in message_of(write(path, "[]"))
    assert len(read_rows(write(path, {"prompt": "x"}, {"prompt": "y"}))) == 2


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
    (tmp_path / "broken.jsonl").symlink_to("/proc/self/mem")  # its first byte is an error of the device
    assert "broken.jsonl cannot be read: Input/output error" in message_of(tmp_path / "broken.jsonl")
    assert "not a readable Parquet file" in message_of(write(tmp_path / "a.parquet", "x"))


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.parquet", "folder/data-00000-of-00001.arrow"])
def test_a_pointer_of_git_lfs_is_named_as_one(name, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 988097824\n")
    text = message_of(tmp_path / name.partition("/")[0])
    assert f"{tmp_path / name} is a pointer of git-lfs" in text and "lfs pull" in text


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
        f"import sys; from grpo_hpc.data.rows import count_rows; count_rows({str(path)!r}); print(sorted(sys.modules))"
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


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "rows.jsonl")
    with pytest.raises(ConfigError, match="is no regular file"):
        count_rows(tmp_path / "rows.jsonl")
