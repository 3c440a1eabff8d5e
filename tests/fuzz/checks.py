"""What is checked inside a fork, beside the command line."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any


def round_trip(file: str) -> None:
    """A run file that is accepted is the same run after it was written and read again."""
    from grpo_hpc.config import dump_run, load_run

    cfg = load_run(file)
    Path("again.yaml").write_text(dump_run(cfg), encoding="utf-8")
    again = load_run("again.yaml")
    assert again == cfg, f"{cfg!r} became {again!r}"


def strict_json(text: str) -> object:
    """What ``text`` holds; ValueError where it is no JSON, and NaN and Infinity are none."""

    def refuse(word: str) -> object:
        raise ValueError(f"{word} is no JSON")

    return json.loads(text, parse_constant=refuse)


def read_back(file: str) -> None:
    """A file that was written is YAML; there may be none."""
    from grpo_hpc.config.document import read_yaml

    if Path(file).exists():
        read_yaml(Path(file), "run file", "name: x")


def loads(file: str) -> None:
    """A file that was written is a run file."""
    from grpo_hpc.config import load_run

    load_run(file)


_PLACE = "place0holder"  # a word that no quoting changes
_GLOBS = set("*?[]{}~!$`\\'\"<>|&;()# \t")


def word_in_script(case: str) -> None:
    """A word of a profile or a run file changes nothing of job.sh but itself.

    Args:
        case: a JSON file with ``profile``, ``overrides`` and, among their values, the word under ``word`` as ``@``.
    """
    given = json.loads(Path(case).read_text(encoding="utf-8"))
    before, after = (_script(given, word) for word in (_PLACE, given["word"]))
    lines = [_directives(script) for script in (before, after)]
    assert [line.replace(_PLACE, given["word"]) for line in lines[0]] == lines[1], lines
    _require_same(before, after, given["word"])


def _script(given: dict[str, Any], word: str) -> str:
    from grpo_hpc.config import load_run
    from grpo_hpc.config.plain_yaml import dump_yaml
    from grpo_hpc.jobs.prepare import script_of

    Path("profile.yaml").write_text(dump_yaml(_filled(given["profile"], word)), encoding="utf-8")
    words = [f"{key}={json.dumps(value)}" for key, value in _filled(given["overrides"], word).items()]
    return script_of(load_run("qwen3_8b", ["cluster.profile=./profile.yaml", *words]))


def _filled(value: Any, word: str) -> Any:
    if isinstance(value, str):
        return value.replace("@", word)
    if isinstance(value, list):
        return [_filled(item, word) for item in value]
    return {key: _filled(item, word) for key, item in value.items()} if isinstance(value, dict) else value


def _directives(script: str) -> list[str]:
    return [line for line in script.split("\n") if line.startswith("#SBATCH")]


def _require_same(before: str, after: str, word: str) -> None:
    """Both scripts have the same words but for ``word``, which is quoted wherever a shell would see more in it."""
    from grpo_hpc.importing.lexer import lex

    ones, others = ([raw for _, raw in lex(script)] for script in (before, after))
    assert len(ones) == len(others), f"{len(ones)} words and ends of commands became {len(others)}"
    for one, other in zip(ones, others, strict=True):
        text, became = ("".join(piece.text for piece in raw.pieces) for raw in (one, other))
        within = _PLACE in text and " exec " in text  # a script in a word, where the word may be quoted once more
        spelt = {text.replace(_PLACE, said) for said in (word, word.replace('"', '""'))}  # as mounts are written
        assert one.end == other.end and (within or became in spelt), f"{text!r} became {became!r}"
        bare = {char for piece in other.pieces if not (piece.quoted or piece.expand) for char in piece.text}
        known = {char for piece in one.pieces if not (piece.quoted or piece.expand) for char in piece.text}
        assert not (bare - known) & _GLOBS, f"{became!r} is not quoted"
        if within:
            _require_same(text, became, word)


def spin() -> None:
    while True:
        pass


def eat() -> None:
    bytearray(1 << 31)


def raise_an_error() -> None:
    raise IndexError("list index out of range")


def end_with(code: str) -> None:
    raise SystemExit(int(code))


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
