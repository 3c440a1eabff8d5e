"""Finding reward functions: by name, in files, and what is said when one is not there."""

from __future__ import annotations

import pytest

from grpo_hpc.errors import ConfigError
from grpo_hpc.rewards.builtin import exact_number
from grpo_hpc.rewards.registry import check_names, resolve

OWN = "def short(completions):\n    return [1.0 for _ in completions]\n\nlimit = 3\nasync def slow(completions): ...\n"


@pytest.fixture
def own(tmp_path):
    path = tmp_path / "own.py"
    path.write_text(OWN)
    return path


def message_of(function, names):
    with pytest.raises(ConfigError) as caught:
        function(names)
    return str(caught.value)


def test_built_in_and_own_functions_by_column_name(own):
    found = resolve([f"{own}:short", "exact_number"])
    assert list(found) == ["short", "exact_number"]
    assert found["exact_number"] is exact_number
    assert found["short"](["a"]) == [1.0]


def test_unknown_names_come_with_the_closest(own):
    assert "Did you mean exact_number?" in message_of(check_names, ["exact_numbr"])
    assert "Did you mean short?" in message_of(check_names, [f"{own}:shrt"])


def test_two_functions_with_one_name(own, tmp_path):
    other = tmp_path / "other.py"
    other.write_text(OWN)
    assert "is also the name of" in message_of(check_names, [f"{own}:short", f"{other}:short"])
    assert "is named twice" in message_of(check_names, ["exact_number", "exact_number"])


def test_files_that_are_wrong(own, tmp_path):
    broken = tmp_path / "broken.py"
    broken.write_text("x = 1\ndef f(:\n")
    failing = tmp_path / "failing.py"
    failing.write_text("def f(completions): ...\nraise ValueError('no luck')\n")
    assert "does not exist" in message_of(check_names, [f"{tmp_path}/absent.py:f"])
    assert "broken.py:2" in message_of(check_names, [f"{broken}:f"])
    assert "names a file only" in message_of(check_names, [str(own)])
    assert "ValueError: no luck" in message_of(resolve, [f"{failing}:f"])
    assert "is a int, not a function" in message_of(resolve, [f"{own}:limit"])


def test_checking_does_not_run_the_file(tmp_path):
    path = tmp_path / "loud.py"
    path.write_text("from math import sqrt as root\nif True:\n    f = root\nraise SystemExit\n")
    check_names([f"{path}:f"])
    check_names([f"{path}:root"])


WITH_PARAMETERS = """
def short(completions, *, longest: int = 3, unit: float):
    return [float(len(text) <= longest) * unit for text in completions]
"""


def test_parameters_are_bound_checked_and_required(tmp_path):
    path = tmp_path / "own.py"
    path.write_text(WITH_PARAMETERS)
    name = f"{path}:short"
    found = resolve([name], {"short": {"longest": 1, "unit": 2.0}})
    assert found["short"](["a", "bb"]) == [2.0, 0.0]
    for given, said in [
        ({"short": {"unit": 1.0, "longst": 1}}, "Did you mean longest?"),
        ({"short": {}}, "needs unit"),
        ({"shirt": {}, "short": {"unit": 1.0}}, "Did you mean short?"),
    ]:
        with pytest.raises(ConfigError) as caught:
            check_names([name], given)
        assert said in str(caught.value)
    with pytest.raises(ConfigError, match=r"short\.longest.*got '4'"):
        resolve([name], {"short": {"unit": 1.0, "longest": "4"}})


def test_parameters_of_built_in_functions_are_checked_before_the_start():
    with pytest.raises(ConfigError, match="needs soft_cache_length"):
        check_names(["soft_overlong"])
    with pytest.raises(ConfigError, match=r"n_grams.*got 0"):
        check_names(["repetition"], {"repetition": {"n_grams": 0}})
    found = resolve(["soft_overlong"], {"soft_overlong": {"soft_cache_length": 5}}, {"max_completion_length": 10})
    assert found["soft_overlong"](completion_ids=[[1] * 10]) == [-1.0]
