"""ms-swift's scripts, YAML and JSON forms and words: a run file that can be read, or a refusal in words."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from grpo_hpc.importing.surroundings import ENVIRONMENT
from grpo_hpc.importing.table import FLAGS
from tests.fuzz.odd import EDITS, FLOATS, JSON_VALUES, NUMBERS, TEXTS, damaged, in_argument, yaml_values

RECIPES = [file.read_text() for file in sorted((Path(__file__).parents[1] / "unit/importing/recipes").glob("*.sh"))]
NAMES = [name for flag in FLAGS for name in flag.names]
VARIABLES = [name for flag in ENVIRONMENT for name in flag.names]
ODD_WORDS = (
    *(
        "true",
        "false",
        "none",
        "1",
        "8",
        "0.5",
        "[]",
        "{}",
        '""',
        "''",
        "inf",
        "nan",
        "data.jsonl#100",
        "a/b#7",
        "grpo",
    ),
    *("$X", "${X}", '"$X"', "${X:-1}", "${X[@]}", "$((X*X))", "$((1/0))", "$(id)", "`id`", "${X:-${Y:-z}}", "*"),
)
ODD_LINES = (
    *("X=a", 'X="$X$X"', 'X=("${X[@]}" "${X[@]}")', "X=$((X*X))", "X=2", "eval $X", "X='eval $X; eval $X'", "(("),
    *("if true; then", "fi", "for i in 1 2; do", "done", "cat <<EOF", "EOF", "#SBATCH --nodes=2", "#SBATCH -N", "esac"),
    *(
        "#SBATCH '",
        "bash -c 'X=$X$X; eval $X'",
        "[[ a ]]",
        "function f() {",
        "}",
        "case x in",
        "swift rollout --port 1",
    ),
)
WORDS = st.sampled_from(ODD_WORDS) | NUMBERS.map(str) | FLOATS.map(str) | TEXTS
ASSIGNED = st.tuples(st.sampled_from(["", "export "]), st.sampled_from(["X", "Y", *VARIABLES]), WORDS)
LINES = ASSIGNED.map(lambda parts: f"{parts[0]}{parts[1]}={parts[2]}") | st.sampled_from(ODD_LINES) | WORDS
FLAGS_GIVEN = st.lists(st.tuples(st.sampled_from(NAMES) | TEXTS, st.lists(WORDS, max_size=2)), min_size=1, max_size=4)


@st.composite
def scripts(draw: Any) -> bytes:
    """A published recipe with further flags, lines that are repeated, and broken bytes."""
    recipe = draw(st.sampled_from(RECIPES))
    given = " ".join(f"--{name} {' '.join(words)}" for name, words in draw(FLAGS_GIVEN))
    before = [
        line for line in draw(st.lists(LINES, max_size=3)) for _ in range(draw(st.sampled_from([1, 1, 1, 2, 40])))
    ]
    text = "\n".join([*before, recipe.replace("--rlhf_type grpo", f"--rlhf_type grpo {given}", 1)])
    encoded = text.encode(errors="surrogatepass")
    return encoded if draw(st.integers(0, 3)) else damaged(encoded, draw(EDITS))


def imported(fuzzing: Any, files: dict[str, bytes], *words: str) -> None:
    """What comes out is a run file of plain text, whole when the import says so."""
    done = fuzzing.run(files, ["import-swift", "-o", "run.yaml", *words], ["@read_back", "run.yaml"], allowed=(0, 1, 2))
    assert done[1].code == 0, str(done[1])
    if done[0].code == 0:
        fuzzing.run(files, ["import-swift", "-o", "run.yaml", *words], ["@loads", "run.yaml"], allowed=(0,))


def checking(fuzzing: Any, name: str) -> Callable[[bytes], None]:
    return lambda text: imported(fuzzing, {name: text}, name)


def test_script(fuzzing):
    fuzzing.cases(scripts(), checking(fuzzing, "s.sh"), 60)


VALUES = JSON_VALUES | st.sampled_from([[], {}, "", [""], [[]], [None], None, ["a", "b"], {"a": []}])
DOCUMENTS = st.dictionaries(st.sampled_from([*NAMES, "ENV", "train", "rollout", "teacher"]), VALUES, max_size=6)


def test_arguments_in_json(fuzzing):
    forms = DOCUMENTS.map(lambda given: json.dumps({"rlhf_type": "grpo"} | given, default=str).encode())
    fuzzing.cases(forms, checking(fuzzing, "args.json"), 50)


def test_arguments_in_yaml(fuzzing):
    pairs = st.lists(st.tuples(st.sampled_from(NAMES), yaml_values()).map(": ".join), max_size=4)
    forms = pairs.map(lambda lines: "\n".join(["rlhf_type: grpo", *lines]).encode(errors="surrogatepass"))
    fuzzing.cases(forms, checking(fuzzing, "args.yaml"), 30)


def test_words(fuzzing):
    def check(given: list[tuple[str, list[str]]]) -> None:
        words = [word for name, values in given for word in (f"--{name}", *values)]
        imported(fuzzing, {}, "--", "--rlhf_type", "grpo", *map(in_argument, words))

    fuzzing.cases(FLAGS_GIVEN, check, 40)
