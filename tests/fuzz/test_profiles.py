"""Cluster profiles, and words of profiles and run files in the script that starts a job."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st

from grpo_hpc.cluster.profile import Floors, Profile
from tests.fuzz.odd import EDITS, TEXTS, damaged, yaml_values

KEYS = [*Profile.model_fields, "preflight.enabled", "nonsense"]
WORDS = (
    "slurm",
    "local",
    "submitit",
    "none",
    "apptainer",
    "pyxis",
    "docker",
    "gres",
    "12:00:00",
    "300",
    "[a, b]",
    "{A: b}",
)
BASE = {"executor": "slurm", "runtime": "apptainer", "image": "x.sif", "time_limit": '"12:00:00"', "gpus_per_node": "8"}


@st.composite
def profiles(draw: Any) -> bytes:
    values = yaml_values(*WORDS, *(f"{{{key}: 1}}" for key in Floors.model_fields))
    chosen = draw(st.dictionaries(st.sampled_from(KEYS), values, min_size=1, max_size=3))
    text = "\n".join(f"{key}: {value}" for key, value in (BASE | chosen).items()).encode(errors="surrogatepass")
    return text if draw(st.integers(0, 4)) else damaged(text, draw(EDITS))


def test_profile(fuzzing):
    def check(text: bytes) -> None:
        files = {"profiles/mine.yaml": text, "profiles/good.yaml": b"partition: gpu\n"}
        fuzzing.run(files, ["plan", "qwen3_8b", "cluster.profile=mine", "--dry-run"])
        listed = fuzzing.run(files, ["cluster", "list", "--json"], allowed=(0,))
        assert '"good"' in listed[0].stdout, "one damaged profile hides the others"

    fuzzing.cases(profiles(), check, 60)


PLACES: dict[str, Any] = {
    **dict.fromkeys(("account", "partition", "qos", "constraint", "gpu_type", "memory", "network_interface"), "@"),
    **dict.fromkeys(("image", "python", "scratch", "cache"), "/x/p@"),
    "options": ["--x=@"],
    "modules": ["@"],
    "binds": ["/x/p@"],
    "environment": {"X": "@"},
}
OVERRIDES = ("model.path", "data.train", "output_dir")
# what begins a variable or names a home is another word by intention, and a path has one spelling
SIGNS = st.text(alphabet="ab1 '\"\\`*?[]{}()<>|&;#!=:,.@%^+-_\té", min_size=1, max_size=12)
HOSTILE = st.sampled_from(
    ["a;b", "a|b", "*", "&/x.sh", "-x", "--help", "a b", "`id`", "'", '"', "\\", "#", "!", "(", "{a,b}", "x\ny"]
)
NAMED = st.sampled_from([*PLACES, *OVERRIDES])


def test_word_in_script(fuzzing):
    def check(case: tuple[str, str, str]) -> None:
        place, runtime, word = case
        image = {} if runtime == "none" else {"image": "/x.sif"}
        profile = {"executor": "slurm", "runtime": runtime, "gpus_per_node": 8, "time_limit": "12:00:00", **image}
        profile |= {place: PLACES[place]} if place in PLACES else {}
        given = {"profile": profile, "overrides": {place: "/x/p@"} if place in OVERRIDES else {}, "word": word}
        fuzzing.run({"case.json": json.dumps(given).encode()}, ["@word_in_script", "case.json"])

    words = (SIGNS | HOSTILE | TEXTS).filter(lambda text: text.strip(".") and not set("$~/") & set(text))
    runtimes = st.sampled_from(["none", "apptainer", "docker", "podman", "pyxis"])
    fuzzing.cases(st.tuples(NAMED, runtimes, words), check, 60)
