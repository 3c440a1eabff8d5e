"""The program of docs/first_job.md that makes rows of a data set of the hub; here no hub is asked."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import SimpleNamespace

from grpo_hpc.data.rows import read_rows

PAGE = (Path(__file__).parents[3] / "docs" / "first_job.md").read_text()
(PROGRAM,) = re.findall(r"`make_rows.py` is\n\n```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
ROWS = {
    "train": [{"question": "How many?", "answer": "Two and two.\n2 + 2 = <<2+2=4>>4\n#### 4"}],
    "test": [{"question": "How far?", "answer": "Far.\n#### 1,200"}],
}


def test_its_rows_are_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = []

    def load_dataset(path, name, split):
        asked.append((path, name))
        return ROWS[split]

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    exec(compile(PROGRAM, "make_rows.py", "exec"), {})
    assert set(asked) == {("openai/gsm8k", "main")}
    ((train,), (held_out,)) = (read_rows(tmp_path / f"{name}.jsonl") for name in ("train", "eval"))
    assert train.messages == [{"role": "user", "content": "How many?"}]
    assert (train.columns["answer"], held_out.columns["answer"]) == ("4", "1200")
