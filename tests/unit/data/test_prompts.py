"""Tokenised data sets: rows come back as read, a cache is built once, damage and races end with a whole one."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from grpo_hpc.data import prompts as module
from grpo_hpc.data.prompts import PromptSet, open_prompts
from grpo_hpc.data.rows import read_rows
from grpo_hpc.errors import ConfigError, EnvironmentProblem


class Letters:
    """One token for each byte of the last message; counts what it was asked."""

    def __init__(self, digest: str = "letters") -> None:
        self.digest, self.encoded = digest, 0

    def text(self, row):
        if row.messages[-1]["content"] == "refused":
            raise ConfigError("is refused by the model's chat template: no such role")
        return row.messages[-1]["content"]

    def encode_all(self, texts):
        self.encoded += len(texts)
        return [list(text.encode()) for text in texts]


def deep(levels):
    return [deep(levels - 1)] if levels else []


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def data(tmp_path):
    """Rows of 1 to 5 tokens; a line is blank."""
    rows = [{"prompt": "x" * n, "id": f"r{n}"} for n in (3, 1, 5, 2, 4)]
    path = write(tmp_path / "a.jsonl", *rows)
    path.write_text("\n" + path.read_text())
    return path


def test_rows_come_back_as_they_were_read(tmp_path):
    odd = {
        "big": 10**300,
        "nested": [[1, [None, {"ä": []}]], {}],
        "none": None,
        "tiny": 5e-324,
        "text": "日本\u2028😀\0",
    }
    chat = [{"role": "system", "content": "s", "name": "n"}, {"role": "user", "content": "ü"}]
    path = write(tmp_path / "a.jsonl", {"prompt": "é", **odd}, {"messages": chat, "id": 7, "x": [1.0, 1, True]})
    prompts = open_prompts(path, Letters(), tmp_path / "cache", system="Be brief.")
    assert [prompts.row(n) for n in range(len(prompts))] == read_rows(path, "Be brief.")
    assert repr([prompts.row(n) for n in range(2)]) == repr(read_rows(path, "Be brief.")), "types, too"
    assert prompts.tokens(0).tolist() == list("é".encode()) and prompts.tokens(0).dtype == np.int32
    assert prompts.tokens(1).tolist() == list("ü".encode())


def test_rows_of_parquet_come_back_with_their_types(tmp_path):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    from datetime import datetime
    from decimal import Decimal

    when = datetime(2026, 1, 2, 3, 4, 5, 6)
    record = {"prompt": "x", "when": when, "price": Decimal("1.20"), "raw": b"\xff", "day": when.date()}
    table = arrow.Table.from_pylist([record])
    pairs = arrow.array([[("a", 1)]], arrow.map_(arrow.string(), arrow.int64()))
    parquet.write_table(table.append_column("pairs", pairs), tmp_path / "a.parquet")
    prompts = open_prompts(tmp_path / "a.parquet", Letters(), tmp_path / "cache")
    assert [prompts.row(0)] == read_rows(tmp_path / "a.parquet")
    assert prompts.row(0).columns["pairs"] == [("a", 1)] and prompts.row(0).columns["when"] == when


def test_more_rows_than_are_tokenised_at_once(tmp_path):
    path = write(tmp_path / "a.jsonl", *({"prompt": str(n), "id": n} for n in range(2345)))
    prompts = open_prompts(path, Letters(), tmp_path / "cache")
    assert len(prompts) == 2345
    assert [bytes(prompts.tokens(n).tolist()) for n in range(2345)] == [str(n).encode() for n in range(2345)]
    assert [prompts.row(n).prompt_id for n in (0, 999, 1000, 2344)] == ["0", "999", "1000", "2344"]


def test_long_prompts_are_left_out(tmp_path, data):
    prompts = open_prompts(data, Letters(), tmp_path / "cache")
    assert prompts.fitting(5) is prompts
    some = prompts.fitting(4).fitting(3)
    assert [some.row(n).prompt_id for n in range(len(some))] == ["r3", "r1", "r2"]
    assert [len(some.tokens(n)) for n in range(len(some))] == [3, 1, 2]
    assert len(prompts) == 5, "the whole set stays what it is"
    with pytest.raises(IndexError):
        some.row(3)
    with pytest.raises(ConfigError, match=r"all 5 prompts of .*a\.jsonl have more than 0 tokens; the shortest has 1"):
        prompts.fitting(0)


def test_nobody_can_write_into_a_set(tmp_path, data):
    with pytest.raises(ValueError, match="read-only"):
        open_prompts(data, Letters(), tmp_path / "cache").tokens(0)[0] = 1


def test_a_set_is_tokenised_once(tmp_path, data):
    tokenizer = Letters()
    for _ in range(2):
        prompts = open_prompts(data, tokenizer, tmp_path / "cache")
    assert tokenizer.encoded == 5
    assert [prompts.row(n) for n in range(5)] == read_rows(data)


@pytest.mark.parametrize("change", ["content", "time", "system", "tokenizer", "path"])
def test_whatever_changes_the_tokens_is_another_set(tmp_path, data, change):
    open_prompts(data, Letters(), tmp_path / "cache")
    tokenizer, system = Letters("other" if change == "tokenizer" else "letters"), None
    if change == "content":
        write(data, {"prompt": "new"})
    elif change == "time":
        os.utime(data, ns=(1, 1))
    elif change == "system":
        system = "s"
    elif change == "path":
        data = data.rename(tmp_path / "b.jsonl")
    prompts = open_prompts(data, tokenizer, tmp_path / "cache", system=system)
    assert tokenizer.encoded == len(prompts) == len(read_rows(data))
    assert [prompts.row(n) for n in range(len(prompts))] == read_rows(data, system)


def test_a_folder_of_datasets_is_known_by_all_its_files(tmp_path):
    datasets = pytest.importorskip("datasets")
    for text in ("a", "bc"):
        datasets.Dataset.from_list([{"prompt": text}]).save_to_disk(tmp_path / "set")
        prompts = open_prompts(tmp_path / "set", Letters(), tmp_path / "cache")
        assert prompts.tokens(0).tolist() == list(text.encode())


@pytest.mark.parametrize("file", ["tokens.bin", "rows.bin", "index.bin", "manifest.json"])
@pytest.mark.parametrize("damage", ["short", "gone"])
def test_a_damaged_set_is_built_again(tmp_path, data, file, damage):
    open_prompts(data, Letters(), tmp_path / "cache")
    (found,) = (tmp_path / "cache").glob(f"*/{file}")
    found.unlink() if damage == "gone" else found.write_bytes(found.read_bytes()[:-1])
    tokenizer = Letters()
    prompts = open_prompts(data, tokenizer, tmp_path / "cache")
    assert tokenizer.encoded == 5 and [prompts.row(n) for n in range(5)] == read_rows(data)
    assert len(list((tmp_path / "cache").iterdir())) == 1, "nothing is left behind"


def test_a_set_of_another_format_is_built_again(tmp_path, data):
    open_prompts(data, Letters(), tmp_path / "cache")
    (manifest,) = (tmp_path / "cache").glob("*/manifest.json")
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"format": 0}))
    tokenizer = Letters()
    open_prompts(data, tokenizer, tmp_path / "cache")
    assert tokenizer.encoded == 5


def test_many_build_at_once(tmp_path, data):
    """As nodes do that share a file system: all of them find nothing, and all end with the same folder."""
    ready, found = threading.Barrier(4), []

    class Slow(Letters):
        def encode_all(self, texts):
            ready.wait(60)  # everybody builds
            return super().encode_all(texts)

    def work():
        found.append(open_prompts(data, Slow(), tmp_path / "cache"))

    threads = [threading.Thread(target=work) for _ in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert [[prompts.row(n) for n in range(5)] for prompts in found] == [read_rows(data)] * 4
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_a_killed_builder_leaves_no_set(tmp_path, data):
    code = (
        "import os, sys; from pathlib import Path; from grpo_hpc.data.prompts import open_prompts\n"
        "class Killed:\n"
        "    digest = 'letters'\n"
        "    def text(self, row): return 'x'\n"
        "    def encode_all(self, texts): os.kill(os.getpid(), 9)\n"
        "open_prompts(sys.argv[1], Killed(), Path(sys.argv[2]))"
    )
    killed = subprocess.run([sys.executable, "-c", code, data, tmp_path / "cache"], check=False)
    assert killed.returncode == -9 and list((tmp_path / "cache").iterdir())
    tokenizer = Letters()
    assert len(open_prompts(data, tokenizer, tmp_path / "cache")) == tokenizer.encoded == 5


def test_what_a_killed_builder_left_is_removed_when_it_is_old(tmp_path, data):
    open_prompts(data, Letters(), tmp_path / "cache")
    (whole,) = (tmp_path / "cache").iterdir()
    drafts = [whole.rename(whole.with_name(f".{whole.name}.0ld")), whole.with_name(f".{whole.name}.new")]
    drafts[1].mkdir()
    for path in [drafts[0], *drafts[0].iterdir()]:
        os.utime(path, (1, 1))
    open_prompts(data, Letters(), tmp_path / "cache")
    assert sorted((tmp_path / "cache").iterdir()) == [drafts[1], whole]


class Ranks:
    """Processes that call together, as threads: ``gather`` gives everybody's message."""

    def __init__(self, count):
        self._all, self._met = [None] * count, threading.Barrier(count)

    def run(self, rank, work, into):
        def gather(mine):
            self._all[rank] = mine
            self._met.wait(60)
            return list(self._all)

        try:
            into[rank] = work(rank, gather)
        except Exception as error:
            into[rank] = error


def together(count, work):
    ranks, found = Ranks(count), [None] * count
    threads = [threading.Thread(target=ranks.run, args=(rank, work, found)) for rank in range(count)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    return found


def test_one_process_builds_and_the_others_wait_for_it(tmp_path, data):
    tokenizers = [Letters() for _ in range(3)]
    found = together(
        3, lambda n, gather: open_prompts(data, tokenizers[n], tmp_path / "cache", builds=n == 1, gather=gather)
    )
    assert [tokenizer.encoded for tokenizer in tokenizers] == [0, 5, 0]
    assert [[prompts.row(n) for n in range(5)] for prompts in found] == [read_rows(data)] * 3


def test_what_one_process_finds_wrong_all_of_them_say(tmp_path):
    path = write(tmp_path / "a.jsonl", {"prompt": "x"}, {"question": "y"})
    found = together(
        2, lambda n, gather: open_prompts(path, Letters(), tmp_path / "cache", builds=n == 0, gather=gather)
    )
    assert all(isinstance(error, ConfigError) and "a.jsonl:2: has no 'messages'" in str(error) for error in found)
    assert not list((tmp_path / "cache").iterdir())


def test_nodes_that_see_different_data_do_not_train_on_it(tmp_path, data):
    other = write(tmp_path / "other" / "a.jsonl", {"prompt": "x"}) if (tmp_path / "other").mkdir() is None else None
    found = together(2, lambda n, gather: open_prompts((data, other)[n], Letters(), tmp_path / str(n), gather=gather))
    assert all(isinstance(error, EnvironmentProblem) and "do not see the same data" in str(error) for error in found)


def test_a_cache_that_only_the_builder_sees(tmp_path, data):
    found = together(
        2, lambda n, gather: open_prompts(data, Letters(), tmp_path / str(n), builds=n == 0, gather=gather)
    )
    assert isinstance(found[0], PromptSet)
    assert isinstance(found[1], EnvironmentProblem) and "GRPO_HPC_CACHE" in str(found[1])


def test_a_cache_that_cannot_be_written(tmp_path, data):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(EnvironmentProblem, match=r"cannot be written to .*cache") as caught:
        open_prompts(data, Letters(), tmp_path / "cache")
    assert "GRPO_HPC_CACHE" in caught.value.hint


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "refused"}, "is refused by the model's chat template: no such role"),
        ({"prompt": ""}, "is no token at all"),
        ({"prompt": "x", "deep": deep(700)}, "is nested too deeply"),
    ],
)
def test_rows_that_the_tokenizer_cannot_use_are_named_with_their_lines(tmp_path, row, said):
    path = write(tmp_path / "a.jsonl", {"prompt": "x"}, row, {"prompt": "y"})
    with pytest.raises(ConfigError) as caught:
        open_prompts(path, Letters(), tmp_path / "cache")
    assert "has 1 row that cannot be used" in str(caught.value) and f"a.jsonl:2: {said}" in str(caught.value)
    assert not list((tmp_path / "cache").iterdir())


def test_tokens_beyond_the_embedding_are_named_with_their_lines(tmp_path):
    path = write(tmp_path / "a.jsonl", {"prompt": "az"}, {"prompt": "b"}, {"prompt": "zz{"})
    prompts = open_prompts(path, Letters(), tmp_path / "cache")
    prompts.require_vocabulary(ord("{") + 1)
    with pytest.raises(ConfigError) as caught:
        prompts.require_vocabulary(ord("z"))
    text = str(caught.value)
    assert "2 rows" in text and "a.jsonl:1: has the token 122" in text and "a.jsonl:3: has the token 123" in text
    assert "has 122 rows" in text and ":2:" not in text


def test_not_a_number_is_kept(tmp_path):
    path = write(tmp_path / "a.jsonl", {"prompt": "x", "score": math.nan})
    assert math.isnan(open_prompts(path, Letters(), tmp_path / "cache").row(0).columns["score"])


def test_importing_it_imports_no_torch():
    code = f"import sys; import {module.__name__}, grpo_hpc.data.tokenizer; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_processes_share_one_copy(tmp_path):
    """A set is pages of files, not memory of the process."""
    path = write(tmp_path / "a.jsonl", *({"prompt": "x", "text": "y" * 10_000, "id": n} for n in range(2000)))
    prompts = open_prompts(path, Letters(), tmp_path / "cache")
    mapped = Path("/proc/self/smaps").read_text()
    assert "rows.bin" in mapped and "tokens.bin" in mapped and len(prompts) == 2000
