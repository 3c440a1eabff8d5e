"""Reading long logs from their ends."""

from __future__ import annotations

import pytest

from grpo_hpc.runs import log_ends
from grpo_hpc.runs.log_ends import ends_of, start_of_last


def test_what_is_left_out_is_counted(tmp_path):
    log = tmp_path / "x.log"
    text = "".join(f"line {number}\n" for number in range(1000))
    log.write_text(text)
    assert ends_of(log) == text
    first, _, rest = ends_of(log, 20, 30).partition("\n... ")
    said, _, last = rest.partition(" bytes left out ...\n")
    assert first == "line 0\nline 1" and last == "line 997\nline 998\nline 999\n"
    assert int(said.replace(",", "")) == len(text) - len(first) - len(last)
    assert ends_of(tmp_path / "none.log") == ""


@pytest.mark.parametrize("block", [1, 3, 7, 2**16])
@pytest.mark.parametrize("end", ["", "\n"])
def test_the_last_lines_are_found_from_the_end(tmp_path, monkeypatch, block, end):
    monkeypatch.setattr(log_ends, "_BLOCK", block)
    log, lines = tmp_path / "x.log", ["one", "", "three", "vier", "ü"]
    log.write_text("\n".join(lines) + end)
    for last in range(1, 7):
        text = log.read_bytes()[start_of_last(log, last) :].decode()
        assert text.removesuffix("\n").split("\n") == lines[-last:]
    log.write_bytes(b"")
    assert start_of_last(log, 3) == 0
