"""Run files and overrides: planned, or refused in words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from hypothesis import strategies as st

from grpo_hpc.config.plain_yaml import parse_value
from grpo_hpc.config.sections import SECTIONS, TOP_LEVEL, RunConfig
from tests.fuzz.odd import EDITS, TEXTS, damaged, in_argument, yaml_values

CONFIGS = Path(__file__).parents[2] / "configs"
FILES = sorted(CONFIGS.glob("*.yaml")) + sorted(CONFIGS.glob("recipes/*.yaml"))
SHIPPED = [parse_value(file.read_text()) for file in FILES]
KEYS = [(section, key) for section, model in SECTIONS.items() for key in model.model_fields]
KEYS += [("", key) for key in TOP_LEVEL]
WORDS = ("local", "cuda", "cpu", "lora", "server", "colocate", "full", "selective", "float32", "gspo", "none", "block")
VALUES = yaml_values(*WORDS, "[accuracy]", "[exact_number, format]", "Qwen3-8B", "{exact_number: {x: 1}}")
SYNTAX = (
    "---",
    "...",
    "- a",
    "a",
    "a: b: c",
    "\tname: x",
    "%YAML 9.9",
    "? a",
    "!x",
    "&a",
    "name: again",
    "<<: *a",
    "'",
)
PLANNED = ("plan", "run.yaml"), ("plan", "run.yaml", "--json")


def fitting(section: str, key: str) -> st.SearchStrategy[str]:
    """Values of the type of a key, most of which some run may have."""
    annotation = (SECTIONS[section] if section else RunConfig).model_fields[key].annotation
    words = [str(word).lower() if isinstance(word, bool) else str(word) for word in choices(annotation)]
    return st.sampled_from(words or ["x", "[x]", "{}", "null"])


def choices(annotation: Any) -> list[Any]:
    """What a type allows, or a few of its values."""
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    some = {bool: [True, False], int: [1, 2, 3, 4, 8, 64, 4096], float: [0.1, 0.9, 1, 2.5, 100], type(None): ["null"]}
    return some.get(annotation, []) + [word for part in get_args(annotation) for word in choices(part)]


@st.composite
def run_files(draw: Any) -> bytes:
    """The text of a run file: a shipped one with changed values, further lines and broken bytes."""
    values = draw(st.sampled_from(SHIPPED))
    sections: dict[str, dict[str, str]] = {"": {}}
    for key, value in values.items():
        inside, leaves = (key, value) if isinstance(value, dict) else ("", {key: value})
        sections.setdefault(inside, {}).update({leaf: json.dumps(item) for leaf, item in leaves.items()})
    for section, key in draw(st.lists(st.sampled_from(KEYS), min_size=1, max_size=3)):
        sections.setdefault(section, {})[key] = draw(fitting(section, key) if draw(st.integers(0, 3)) else VALUES)
    lines = [line for section, found in sections.items() for line in _lines(section, found)]
    if not draw(st.integers(0, 7)):
        lines.insert(draw(st.integers(0, len(lines))), draw(st.sampled_from(SYNTAX) | VALUES | TEXTS))
    text = "\n".join(lines).encode(errors="surrogatepass")
    return text if draw(st.integers(0, 7)) else damaged(text, draw(EDITS))


def _lines(section: str, found: dict[str, str]) -> list[str]:
    head, indent = ([f"{section}:"], "  ") if section else ([], "")
    return [*head, *(f"{indent}{key}: {value}" for key, value in found.items())]


def test_run_file(fuzzing):
    fuzzing.cases(run_files(), lambda text: fuzzing.run({"run.yaml": text}, *PLANNED), 70)


def test_run_file_is_the_same_after_it_was_written(fuzzing):
    def check(text: bytes) -> None:
        if fuzzing.run({"run.yaml": text}, PLANNED[0])[0].code == 0:
            fuzzing.run({"run.yaml": text}, ("@round_trip", "run.yaml"))

    fuzzing.cases(run_files(), check, 40)


NAMES = st.sampled_from([".".join(filter(None, key)) for key in KEYS] + [key for _, key in KEYS])
FITTING = st.sampled_from(KEYS).flatmap(lambda key: fitting(*key).map(lambda value: f"{key[1]}={value}"))
OVERRIDES = FITTING | st.tuples(NAMES | TEXTS, VALUES | TEXTS).map(lambda pair: in_argument("=".join(pair)))


def test_overrides(fuzzing):
    def check(case: tuple[str, list[str]]) -> None:
        name, words = case
        fuzzing.run({}, ["plan", "--json", "--", name, *words])

    names = st.sampled_from([file.stem for file in FILES])
    fuzzing.cases(st.tuples(names, st.lists(OVERRIDES, min_size=1, max_size=4)), check, 60)


COUNTS = st.integers() | st.integers(0, 10**6)
NODES = st.one_of(
    TEXTS.map(in_argument),
    st.tuples(COUNTS, COUNTS).map(lambda pair: f"{pair[0]}..{pair[1]}"),
    st.tuples(COUNTS, st.integers(-1, 3)).map(lambda pair: f"{pair[0]}..{pair[0] + pair[1]}"),
)


def test_search(fuzzing):
    def check(case: tuple[str, str, str]) -> None:
        name, nodes, override = case
        numbers = [int(part) for part in nodes.split("..") if part.isdecimal()]
        if len(numbers) < 2 or not 4 < numbers[1] - numbers[0] < 256:
            fuzzing.run({}, ["plan", name, override, "--search", "--json", f"--nodes={nodes}"])

    runs = st.sampled_from(["qwen3_8b", "qwen3_8b_lora", "quickstart"])
    fuzzing.cases(st.tuples(runs, NODES, OVERRIDES), check, 10)
