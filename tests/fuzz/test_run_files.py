"""Run files and overrides: planned, or refused in words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from hypothesis import strategies as st

from grpo_hpc.config.sections import SECTIONS, TOP_LEVEL
from tests.fuzz.odd import EDITS, TEXTS, damaged, yaml_values

CONFIGS = Path(__file__).parents[2] / "configs"
FILES = sorted(CONFIGS.glob("*.yaml")) + sorted(CONFIGS.glob("recipes/*.yaml"))
KEYS = [*((section, key) for section, model in SECTIONS.items() for key in model.model_fields), *(("", k) for k in TOP_LEVEL)]
WORDS = ("local", "cuda", "cpu", "lora", "server", "colocate", "full", "selective", "float32", "grpo", "gspo", "none", "uniform")
VALUES = yaml_values(*WORDS, "[accuracy]", "[exact_number, format]", "Qwen3-8B", "{exact_number: {x: 1}}")
PLANNED = ("plan", "run.yaml"), ("plan", "run.yaml", "--json")


@st.composite
def run_files(draw: Any) -> bytes:
    """The text of a run file: a shipped one with changed values, further lines and broken bytes."""
    values = yaml.safe_load(draw(st.sampled_from(FILES)).read_text())
    chosen = draw(st.lists(st.sampled_from(KEYS), min_size=1, max_size=3))
    sections: dict[str, dict[str, str]] = {"": {}}
    for key, value in values.items():
        if isinstance(value, dict):
            sections[key] = {leaf: yaml.safe_dump(item, default_flow_style=True).strip() for leaf, item in value.items()}
        else:
            sections[""][key] = str(value)
    for section, key in chosen:
        sections.setdefault(section, {})[key] = draw(VALUES)
    lines = [line for section, found in sections.items() for line in _lines(section, found)]
    for line in draw(st.lists(st.sampled_from(SYNTAX) | VALUES | TEXTS, max_size=1)):
        lines.insert(draw(st.integers(0, len(lines))), line)
    return damaged("\n".join(lines).encode(errors="surrogatepass"), draw(EDITS) if draw(st.booleans()) else [])


SYNTAX = ("---", "...", "- a", "a", "a: b: c", "\tname: x", "%YAML 9.9", "%TAG ! x", "? a", "!x", "&a", "name: again", "<<: *a", "'")


def _lines(section: str, found: dict[str, str]) -> list[str]:
    indent = "  " if section else ""
    return [*([f"{section}:"] if section else []), *(f"{indent}{key}: {value.replace(chr(10), ' ')}" for key, value in found.items())]


def test_run_file(fuzzing):
    fuzzing.cases(run_files(), lambda text: fuzzing.run({"run.yaml": text}, *PLANNED), 70)


def test_run_file_is_the_same_after_it_was_written(fuzzing):
    def check(text: bytes) -> None:
        if fuzzing.run({"run.yaml": text}, PLANNED[0])[0].code == 0:
            fuzzing.run({"run.yaml": text}, ("@round_trip", "run.yaml"))

    fuzzing.cases(run_files(), check, 40)


OVERRIDES = st.lists(
    st.tuples(st.sampled_from([".".join(filter(None, key)) for key in KEYS] + [key for _, key in KEYS]) | TEXTS, VALUES | TEXTS).map(
        "=".join
    ),
    min_size=1,
    max_size=4,
).map(lambda words: [word.replace("\0", "").encode(errors="ignore").decode() for word in words])


def test_overrides(fuzzing):
    def check(case: tuple[str, list[str], bool]) -> None:
        name, words, search = case
        extra = ["--search"] if search else ["--json"]
        fuzzing.run({}, ["plan", *extra, "--", name, *(word if "=" in word else f"{word}=" for word in words)])

    names = st.sampled_from([file.stem for file in FILES])
    fuzzing.cases(st.tuples(names, OVERRIDES, st.booleans()), check, 60)


NODES = st.one_of(TEXTS, st.tuples(st.integers() | st.integers(0, 10**6), st.integers() | st.integers(0, 200)).map(lambda p: f"{p[0]}..{p[1]}"))


def test_search(fuzzing):
    def check(case: tuple[str, str]) -> None:
        name, nodes = case
        fuzzing.run({}, ["plan", name, "--search", "--json", "--nodes", nodes.replace("\0", "").encode(errors="ignore").decode()])

    fuzzing.cases(st.tuples(st.sampled_from(["qwen3_8b", "qwen3_30b_a3b", "quickstart"]), NODES), check, 10)
