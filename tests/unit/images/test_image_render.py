from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

import pytest

from grpo_hpc.errors import ConfigError
from grpo_hpc.images.render import SUFFIX, render
from grpo_hpc.images.spec import ImageSpec, load_images

CONTAINERS = Path(__file__).parents[3] / "containers"
HOSTILE = [
    "two words",
    'it\'s "quoted"',
    "$(touch broken) `touch broken`",
    "a;b && c | d > e",
    "ünïcode ✓",
    "#no comment",
    "\\",
]


def spec(**changes: object) -> ImageSpec:
    base = {"summary": "for a test", "base": "localhost/base", "python": "3.11", "device": "cpu", "lock": "none.lock"}
    return ImageSpec.model_validate({**base, **changes})


@pytest.mark.parametrize("form", SUFFIX)
@pytest.mark.parametrize("name", ["cpu", "gpu", "gpu-ngc"])
def test_committed_build_files_are_what_is_rendered(name, form):
    text = render(name, load_images()[name], form)
    assert (CONTAINERS / f"{name}{SUFFIX[form]}").read_text() == text, "run: grpo-hpc image render --write containers"


def test_no_build_file_is_left_over():
    rendered = {f"{name}{suffix}" for name in load_images() for suffix in SUFFIX.values()}
    committed = {path.name for path in CONTAINERS.iterdir() if path.suffix in SUFFIX.values()}
    assert committed == rendered


def runs(dockerfile: str) -> list[str]:
    """The shell commands of every RUN instruction."""
    joined = dockerfile.replace("\\\n", "")
    return [line.removeprefix("RUN ") for line in joined.splitlines() if line.startswith("RUN ")]


def posts(definition: str) -> list[str]:
    """The script of every %post section."""
    sections = definition.split("\n%")
    return [
        section.partition("\n")[2].partition("\nBootstrap:")[0] for section in sections if section.startswith("post")
    ]


@pytest.mark.parametrize("name", ["cpu", "gpu", "gpu-ngc"])
def test_both_formats_run_the_same_commands(name):
    image = load_images()[name]
    docker = [part for run in runs(render(name, image, "dockerfile")) for part in run.split(" && ")]
    apptainer = "\n".join(posts(render(name, image, "apptainer"))).splitlines()
    apptainer = [line.strip() for line in apptainer if line.strip() not in ("", "set -eu")]
    assert [part.strip() for part in docker] == apptainer


@pytest.mark.parametrize("name", ["cpu", "gpu", "gpu-ngc"])
def test_every_script_is_shell(name):
    image = load_images()[name]
    for script in [*runs(render(name, image, "dockerfile")), *posts(render(name, image, "apptainer"))]:
        subprocess.run(["sh", "-n"], input=script, text=True, check=True)


@pytest.mark.parametrize("value", HOSTILE)
def test_hostile_environment_values_reach_the_build_as_they_are(value, tmp_path):
    image = spec(environment={"VALUE": value})
    (exports,) = [line for line in runs(render("x", image, "dockerfile")) if "VALUE" in line]
    setting = next(part for part in exports.split(" && export ") if part.startswith("VALUE=")).partition(" && python3")[
        0
    ]
    for script in (f"export {setting}", environment_section(render("x", image, "apptainer"))):
        done = subprocess.run(
            ["sh", "-eu", "-c", f'{script}\nprintf %s "$VALUE"'],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout == value
    assert not list(tmp_path.iterdir())


def environment_section(definition: str) -> str:
    return definition.partition("%environment\n")[2].partition("\n%")[0]


@pytest.mark.parametrize(
    "change",
    [
        {"base": "two words"},
        {"base": "x\nRUN true"},
        {"summary": "a\nRUN true"},
        {"packages": ["g++; true"]},
        {"packages": ["--yes"]},
        {"environment": {"A B": "x"}},
        {"environment": {"A": "x\ny"}},
        {"pins": ["torch>=2"]},
        {"python": "3"},
        {"unknown": 1},
    ],
)
def test_values_that_would_change_the_file_are_refused(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        spec(**change)


@pytest.mark.parametrize(
    ("base", "head"),
    [
        ("docker.io/library/debian:12-slim", "Bootstrap: docker\nFrom: debian:12-slim"),
        ("nvcr.io/nvidia/pytorch:1", "Bootstrap: docker\nFrom: nvcr.io/nvidia/pytorch:1"),
        ("localhost/base", "Bootstrap: docker\nFrom: localhost/base"),
        ("localimage:/a/b.sif", "Bootstrap: localimage\nFrom: /a/b.sif"),
        ("docker-archive:/a/b.tar", "Bootstrap: docker-archive\nFrom: /a/b.tar"),
    ],
)
def test_bases_of_apptainer(base, head):
    assert render("x", spec(base=base), "apptainer").count(head + "\nStage:") == 2


def test_another_base_takes_the_place_of_both_stages_unless_one_is_named():
    image = load_images()["gpu"]
    assert render("gpu", image.on("one", "one"), "dockerfile").count("FROM one") == 2
    text = render("gpu", image.on("one", "two"), "dockerfile")
    assert text.index("FROM two AS build") < text.index("FROM one\n")
    with pytest.raises(ConfigError, match="no name of an image"):
        image.on("not a name", "not a name")


def test_words_are_quoted_for_the_shell():
    text = render("x", spec(packages=["g++", "a~b"]), "dockerfile")
    assert shlex.split(runs(text)[-1].partition("&&")[2])[-6:-3] == ["g++", "a~b", "&&"]
