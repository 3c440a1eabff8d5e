"""Shell scripts are read as a shell reads them, and never run. The reference is bash itself, on harmless scripts."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo_hpc.errors import ConfigError
from grpo_hpc.importing.shell import read_script

SCRIPTS = [
    "X=5; show --a 1 --b=2 'two words' \"three $X words\" # comment",
    'X=5; Y=$X$X; show $Y ${X} ${Z:-none} ${Z:-$X} ${X:-no} ${Z-a b} "${Z:-a  b}"',
    "show one\\\n two thr\\\nee 'fo\\\nur' \"fi\\\nve\"",
    'E=\'--a 1 --b "2 3"\'; show $E "$E"',
    'A=(--x 1 # note\n --y \'p q\'\n); A+=(z); show ${A[@]} "${A[@]}" "${A}" $A',
    "show 'it'\"'\"'s' \"a\\\"b\\$c\\\\d\\e\" a\\ b \\\\boxed{}",
    'show """x \\\\boxed{}.""" \'\' "" end',
    'N=3; show $((N * 8)) $((2 + 3 * (4 - 1))) $((7 / 2)) $((7 % 4)) "$(( ${N} + 1 ))"',
    "export G=8 H='a b'; X=1 show $G \"$H\"",
    "if true; then V=1; fi; for i in 1; do W=2; done; show $V$W",
    "cat > /dev/null <<EOF\nshow hidden $X\nEOF\nshow seen",
    "cat > /dev/null <<-'END'\n\tshow hidden\n\tEND\nshow seen",
    "show a > /dev/stdout 2>&1; show b 2>/dev/null && show c || show d",
    "V=a; V+=b; show $V; V=; show x${V:-empty} x$V",
    "show a#b '#c' \\#d ${#} # e",
    'show ${A:-x ${B:-y z}} "${A:-x ${B:-y  z}}" ${A:-\'p q\'} ${A:-"r s"} ${A:-a;b|c}',
    "V=' a b '; W=' '; E=; show $V$E'z' x${E}y $E$V$E x$V$W y$V'z' $V$V $W \"$V\" $W'' ''$V",
    "show *.nothing ~+ {a} [b]",
]


def in_bash(script: str) -> list[list[str]]:
    """The words of every call of ``show``, as bash sees them."""
    define = "show() { printf '%s\\0' \"$@\"; printf '\\1'; }\ncd /\n"
    out = subprocess.run(
        ["bash", "-c", define + script], capture_output=True, check=True, env={"PATH": "/usr/bin:/bin"}
    )
    return [call.split("\0")[:-1] for call in out.stdout.decode().split("\1")[:-1]]


def here(script: str) -> list[list[str]]:
    return [[word.text for word in c.words[1:]] for c in read_script(script).commands if c.words[0].text == "show"]


@pytest.mark.parametrize("script", SCRIPTS)
def test_words_are_those_that_bash_sees(script: str) -> None:
    expected = in_bash(script.replace("~+", "'~+'").replace("${#}", "'${#}'"))
    calls = here(script)
    if "|| show d" in script:
        assert calls[-1] == ["d"]  # every branch is read; bash takes one
        calls = calls[:-1]
    assert calls == expected


def test_nothing_is_run(tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    script = f"touch {trap}; X=$(touch {trap}); show `touch {trap}` $(touch {trap}) $((1 + $(touch {trap})))"
    words = read_script(script).commands[-1].words
    assert not trap.exists()
    assert [bool(word.open) for word in words] == [False, True, True, True]


def test_what_only_a_running_shell_knows_stays_as_written() -> None:
    words = read_script('show $(hostname -s) "$1" x-$UNSET-y $@ ${X%%.*} $((N * 2))').commands[0].words
    assert [word.text for word in words[1:]] == ["$(hostname -s)", "$1", "x-$UNSET-y", "$@", "${X%%.*}", "$((N * 2))"]
    assert all(word.open for word in words[1:])


def test_variables_of_branches_are_uncertain() -> None:
    script = read_script("A=1\nif [ -z $B ]; then B=2; fi\nfor i in 1 2; do C=$i; done\nD=4")
    assert script.uncertain == {"B", "C"}


def test_environment_prefix_and_exports_come_with_the_command() -> None:
    command = read_script("export A=1\nB=2\nC=3 D='x y' show\n").commands[0]
    assert {name: word.text for name, word in command.environment.items()} == {"A": "1", "C": "3", "D": "x y"}
    assert command.line == 3


def test_scripts_inside_commands_are_read() -> None:
    script = 'export A=1; B=2\nC=3 srun -N 2 bash -lc "show $B \\$A; show x"\neval "show \'e f\'"\nbash other.sh -c\n'
    found = [c for c in read_script(script).commands if c.words[0].text == "show"]
    assert [[word.text for word in c.words[1:]] for c in found] == [["2", "1"], ["x"], ["e f"]]
    assert {name: word.text for name, word in found[0].environment.items()} == {"A": "1", "C": "3"}
    assert [c.line for c in found] == [2, 2, 3]


def test_long_and_deep_scripts_are_read_or_refused() -> None:
    assert len(read_script("show a b c\n" * 5_000).commands) == 5_000
    with pytest.raises(ConfigError, match=r"nested too deeply|stand for more than"):
        read_script("show " + "${A:-" * 1000 + "}" * 1000)


@pytest.mark.parametrize(
    ("script", "text"),
    [
        ("a\nshow 'x", "line 2: the quote ' is never closed"),
        ('show "x', 'line 1: the quote " is never closed'),
        ("A=(1 2", "line 1: the bracket ( is never closed"),
        ("show ${X", "line 1: ${ is never closed"),
        ("show `x", "line 1: `x is never closed"),
        ("A=(1 | 2)", "cannot stand in an array"),
    ],
)
def test_broken_scripts_are_named_with_their_line(script: str, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_script(script)
    assert text in caught.value.message


@given(st.text(alphabet="ab=$(){}[]'\"`\\ \n#;&|<>*@+-1/%~!:", max_size=60))
def test_any_text_is_read_or_refused(script: str) -> None:
    try:
        read_script(script)
    except ConfigError as error:
        assert "line " in error.message


@pytest.mark.parametrize(
    "said",
    [
        '$(dirname "$0")',
        "$(dirname -- ${BASH_SOURCE[0]})",
        '$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)',
        '$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" &> /dev/null && pwd)',
        '$(cd "$(dirname "$(readlink -f "$0")")" >/dev/null 2>&1 && pwd -P)',
    ],
)
def test_the_folder_of_a_script_is_known(said):
    script = f'HERE="{said}"\nshow "$HERE/run.yaml"'
    assert [word.text for word in read_script(script, folder="/there").commands[0].words] == ["show", "/there/run.yaml"]
    assert read_script(script).commands[0].words[1].open, "a text that lies nowhere has no folder"
    assert read_script('show $(cd "$(dirname /etc)" && pwd)', folder="/there").commands[0].words[1].open


@pytest.mark.parametrize(
    "script",
    [
        "X=abcdefgh\n" + 'X="$X$X"\n' * 30,
        "X=abcdefgh\n" + "X+=$X\n" * 30,
        "X=(a b)\n" + 'X=("${X[@]}" "${X[@]}")\n' * 30,
        "X=abcdefgh\nshow " + "$X" * 60_000,
        "".join(f"X{n}='eval $X{n + 1}; eval $X{n + 1}'\n" for n in range(40)) + "X40=:\neval $X0",
        "show " + "${A:-" * 300 + "x" * 100_000 + "}" * 300,
        "".join(f"export A{n}=1\n" for n in range(10_000)) + "b\n" * 40_000,
    ],
    ids=["doubled", "appended", "array", "joined", "eval", "defaults", "exports"],
)
def test_what_stands_for_more_than_a_script_can_mean_is_refused(script: str) -> None:
    with pytest.raises(ConfigError, match="stand for more than"):
        read_script(script)


def test_arithmetic_has_the_numbers_of_a_shell() -> None:
    found = read_script("X=9\n" + "X=$((X*X))\n" * 30 + "show $X $((" + "9" * 5000 + ")) $((1 if 2 else 3))")
    assert found.commands[0].words[0].text == "show"
    assert all(word.open for word in found.commands[0].words[1:])
