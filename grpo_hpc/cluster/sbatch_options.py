"""How Slurm writes what a node has and what a job asks for: one reader of GRES and of the options of sbatch."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from grpo_hpc.errors import ConfigError

# man sbatch: the short options, and the options that never take the next word as their value
_NAMES = """
    A=account B=extra-node-info C=constraint D=chdir F=nodefile G=gpus H=hold J=job-name L=licenses M=clusters N=nodes
    O=overcommit Q=quiet S=core-spec W=wait a=array b=begin c=cpus-per-task d=dependency e=error i=input k=no-kill
    m=distribution n=ntasks o=output p=partition q=qos s=oversubscribe t=time v=verbose w=nodelist x=exclude
"""
_SHORT: dict[str, str] = dict(pair.split("=") for pair in _NAMES.split())
_ALONE = {
    *("contiguous", "exclusive", "get-user-env", "hold", "ignore-pbs", "nice", "no-kill", "no-requeue", "overcommit"),
    *("oversubscribe", "parsable", "propagate", "quiet", "reboot", "requeue", "spread-job", "stepmgr", "test-only"),
    *("use-min-nodes", "verbose", "wait"),
}
_BETWEEN_ENTRIES = re.compile(r",(?![^(]*\))")  # the comma of gpu:a:2(S:0,1) is none


@dataclass(frozen=True)
class Asked:
    """What a job asks for; None where it does not say.

    Attributes:
        gpus: of one node.
    """

    nodes: int | None = None
    gpus: int | None = None


def gpus(gres: str) -> dict[str | None, int]:
    """GPUs by their type, None for no type, in a list of generic resources.

    Read are ``gpu:4``, ``gpu:2080ti:4``, ``gpu:a100`` (one), sockets and indices behind them as in
    ``gpu:3090:8(S:0-1)``, entries that are no GPUs, and what accounting writes, as in ``gres/gpu:a100=4``.
    """
    found: dict[str | None, int] = {}
    for entry in _BETWEEN_ENTRIES.split(gres):
        plain = entry.partition("(")[0].strip().replace("=", ":")
        name, *rest = [word for word in re.sub("^gres[/:]", "", plain).split(":") if word != "no_consume"]
        if name != "gpu":
            continue
        count = int(rest.pop()) if rest and re.fullmatch("[0-9]{1,9}", rest[-1]) else 1
        kind = rest[0] if rest and rest[0] else None
        found[kind] = found.get(kind, 0) + count
    return found


def script_lines(script: str) -> tuple[str, list[int]]:
    """What sbatch reads of a script: what stands behind ``#SBATCH``, line by line.

    Returns:
        The options, and the numbers of ``#SBATCH`` lines behind the first command, where sbatch does not look.
    """
    read, unread, begun = [], [], False
    for number, line in enumerate(script.splitlines(), 1):
        if line.startswith("#SBATCH"):
            unread.append(number) if begun else read.append(line.removeprefix("#SBATCH"))
        begun = begun or line.lstrip()[:1] not in ("", "#")
    return "\n".join(read), unread


def split_words(options: str) -> list[str]:
    """The words of options in a text, with quotes as Slurm reads them and without comments.

    Raises:
        ConfigError: a quote is never closed.
    """
    try:
        return shlex.split(options, comments=True)
    except ValueError:
        raise ConfigError("#SBATCH: a quote is never closed") from None


def read_options(words: Sequence[str]) -> dict[str, str]:
    """Options of sbatch by their long names, the last of a name; empty text where an option has no value.

    Understood are ``--nodes=2``, ``--nodes 2``, ``-N 2`` and ``-N2``.
    """
    return dict(_pairs(list(words)))


def _pairs(words: list[str]) -> Iterator[tuple[str, str]]:
    while words:
        word = words.pop(0)
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
        elif word.startswith("-") and word[1:2] in _SHORT:
            name, equals, value = _SHORT[word[1]], word[2:], word[2:].removeprefix("=")
        else:
            continue
        if not equals and name not in _ALONE and words:
            value = words.pop(0)
        yield name, value


def asked(options: Mapping[str, str]) -> Asked:
    """The nodes, and the GPUs of each, that these options ask for; of a range of nodes the least."""
    nodes = _count(options.get("nodes", ""))
    return Asked(nodes, _gpus_of_node(options, nodes or 1))


def _gpus_of_node(options: Mapping[str, str], nodes: int) -> int | None:
    for name in ("gpus-per-node", "gres", "tres-per-node"):
        if name in options and (found := _sum(name, options[name])):
            return found
    tasks = _count(options.get("ntasks-per-node", "")) or (_count(options.get("ntasks", "")) or nodes) // nodes
    for name in ("gpus-per-task", "tres-per-task"):
        if found := _sum(name, options.get(name, "")):
            return found * max(tasks, 1)
    return _sum("gpus", options.get("gpus", "")) // nodes or None


def _sum(name: str, value: str) -> int:
    if not value or "$" in value:
        return 0
    named = name in ("gres", "tres-per-node", "tres-per-task")
    return sum(gpus(value if named else ",".join(f"gpu:{kind}" for kind in value.split(","))).values())


def _count(value: str) -> int | None:
    match = re.match(r"[0-9]{1,9}(?![0-9])", value)
    return int(match[0]) if match else None
