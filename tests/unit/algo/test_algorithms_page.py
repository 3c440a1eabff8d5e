"""docs/algorithms.md and the command line say what the registries say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from grpo_hpc.algo.estimators import ESTIMATORS
from grpo_hpc.algo.losses import DENOMINATORS, LOSSES
from grpo_hpc.cli import main
from grpo_hpc.config.library import run_files
from grpo_hpc.config.sections import Algorithm

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "algorithms.md").read_text()


def rows(head: str) -> dict[str, list[str]]:
    """Cells of the table whose header begins with ``head``, by the first cell."""
    table = PAGE[PAGE.index(f"| {head} |") :].partition("\n\n")[0]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]
    return {row[0].strip("`"): row[1:] for row in cells}


def papers(text: str) -> set[str]:
    return set(re.findall(r"\d{4}\.\d{5}", text))


def test_every_loss_has_its_row() -> None:
    table = rows("`loss_type`")
    assert table.keys() == LOSSES.keys()
    for name, (_, denominator, source) in table.items():
        assert denominator == ("groups" if LOSSES[name].classifies else LOSSES[name].denominator), name
        assert papers(source) >= papers(LOSSES[name].source) - {"2503.14476"}, name


def test_every_denominator_has_its_losses() -> None:
    table = rows("name")
    assert table.keys() == DENOMINATORS.keys()
    for denominator, (_, losses) in table.items():
        assert set(re.findall("`([a-z_]+)`", losses)) == {n for n, x in LOSSES.items() if x.denominator == denominator}


def test_every_estimator_has_its_row() -> None:
    table = rows("`advantage_estimator`")
    assert table.keys() == ESTIMATORS.keys()
    assert all(papers(source) == papers(ESTIMATORS[name].source) for name, (_, source) in table.items())


def test_every_recipe_has_its_row() -> None:
    recipes = {name for name, file in run_files().items() if file.parent.name == "recipes"}
    assert rows("recipe").keys() == recipes
    assert recipes == {"dapo", "gspo", "dr_grpo", "cispo", "sapo", "rloo", "reinforce_plus_plus"}
    for name, (paper, _) in rows("recipe").items():
        assert papers(paper) <= papers(run_files()[name].read_text().splitlines()[0]), name


def test_every_key_is_on_the_page() -> None:
    missing = [key for key in Algorithm.model_fields if not re.search(rf"\b{key}\b", PAGE)]
    assert missing == []


@pytest.mark.parametrize("what", ["losses", "estimators", "rewards"])
def test_the_command_lists_names_and_sources(what: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["train", "--list", what])
    out = capsys.readouterr().out
    assert caught.value.code == 0
    if what == "losses":
        assert all(f"{name}\n" in out and loss.source in out for name, loss in LOSSES.items())
    elif what == "estimators":
        assert all(f"{name}\n" in out and e.source in out and e.summary in out for name, e in ESTIMATORS.items())
    else:
        assert "exact_number\n" in out


def test_every_entry_says_what_it_is_and_where_from() -> None:
    for entry in [*LOSSES.values(), *ESTIMATORS.values()]:
        assert entry.summary.endswith(".") and entry.source, entry.name


def test_a_list_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["train", "--list", "loses"])
    assert caught.value.code == 2 and "losses" in capsys.readouterr().err
