"""`grpo-hpc config keys`, `grpo-hpc cluster keys`, and the pages made of the same facts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from grpo_hpc.cluster import profile_keys
from grpo_hpc.cluster.profile import Profile
from grpo_hpc.config import key_table
from grpo_hpc.config.sections import SECTION_OF, TOP_LEVEL

DOCS = Path(__file__).parents[3] / "docs"


def test_the_pages_are_current():
    assert (DOCS / "run_file.md").read_text() == key_table.page(), (
        "run: python -m grpo_hpc.config.key_table > docs/run_file.md"
    )
    assert (DOCS / "cluster_profile.md").read_text() == profile_keys.page(), (
        "run: python -m grpo_hpc.cluster.profile_keys > docs/cluster_profile.md"
    )


def test_every_key_is_there_and_explained():
    keys = key_table.run_file_keys()
    assert {key.name: key.section for key in keys} == SECTION_OF | dict.fromkeys(TOP_LEVEL, "")
    assert {key.name for key in profile_keys.profile_keys() if not key.section} == {*Profile.model_fields} - {
        "preflight"
    }
    assert [key.name for key in [*keys, *profile_keys.profile_keys()] if not key.meaning or key.kind == "value"] == []


@pytest.mark.parametrize(
    ("section", "name", "kind", "default", "on_resume"),
    [
        ("model", "path", "text", "", "no"),
        ("optimizer", "adam_beta1", "number, at least 0, below 1", "0.9", "no"),
        ("optimizer", "lr", "number, above 0, at most 1e+38", "1e-06", "yes"),
        ("batch", "train_iters", "whole number, at least 1, at most 1e+09", "", "yes"),
        ("", "seed", "whole number, at least 0, below 2147483648", "42", "no"),
        ("rewards", "reward_weights", "list of: number, at least -1e+06, at most 1e+06", "", "yes"),
        ("rewards", "reward_failure", "names with: `zero` or `nan` or `fail`", "{}", "yes"),
        ("rollout", "sleep_level", "`0` or `1` or `2`", "0", "yes"),
        ("parallel", "tensor_model_parallel_size", "whole number, at least 1, at most 32768", "1", "reshardable"),
    ],
)
def test_what_a_key_may_be(section, name, kind, default, on_resume):
    key = next(key for key in key_table.run_file_keys() if (key.section, key.name) == (section, name))
    assert (key.kind, key.default, key.on_resume) == (kind, default, on_resume)


def test_the_commands(cli, capsys):
    assert cli("config", "keys", "optimizer") == 0
    shown = capsys.readouterr().out
    assert "lr: number, above 0, at most 1e+38; default 1e-06; on resume: yes\n      highest learning rate" in shown
    assert "nproc_per_node" not in shown
    assert cli("config", "keys", "--json") == 0
    assert {key["name"] for key in json.loads(capsys.readouterr().out)} == {*SECTION_OF, *TOP_LEVEL}
    assert cli("cluster", "keys") == 0
    assert "save_before_s: whole number" in capsys.readouterr().out


def test_a_section_that_is_none(cli, capsys):
    assert cli("config", "keys", "optimiser") == 2
    assert "Did you mean optimizer?" in capsys.readouterr().err
